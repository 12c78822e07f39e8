"""Real data: named sources, the splits train / validation / test, and preprocessing fitted on train.

The way of an image: a layout of files (`parquet_images`, `class_folders`, `idx_files` ..) gives a `listing`,
`sources` says which part of it is development data, `decoding` makes pixels, `pixels` keeps them in the cache,
`splits` holds validation out, `prepared` fits the preprocessing and keeps whitened images, `real_data` gives batches.

Which data a function may see is decided by what it imports. `sources` and `splits` give the data that a
distillation and a search may see; `held_out` alone gives the test split, and only the evaluation (and `data
prepare`, which decodes it) imports it. Importing this package loads neither PIL, pyarrow nor scikit-learn: the
readers do so when called.
"""
