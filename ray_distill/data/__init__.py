"""Real data: sources, the splits train / validation / test, and preprocessing fitted on train.

The path of an image: a reader in `formats` gives a `listing`, `sources` selects the development data, `decoding` makes
pixels, `decoded` caches them, `splits` holds out validation, `preprocessed` fits the preprocessing and caches whitened
images, `real_data` gives batches.

Which data a function may see follows from what it imports. `sources` and `splits` give the data that a distillation and a
search may see; `test_split` alone gives the test split, and only the evaluation (and `data prepare`, which decodes it)
imports it. Importing this package loads neither PIL, pyarrow nor scikit-learn: the readers import them when called.
"""
