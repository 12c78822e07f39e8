"""Real data: named sources, the splits train / validation / test, and preprocessing fitted on train.

Which data a function may see is decided by what it imports. `sources` and `splits` give the data that a
distillation and a search may see; `held_out` alone gives the test split, and only the evaluation imports
it. Importing this package loads neither PIL, pyarrow nor scikit-learn: the readers do so when called.
"""
