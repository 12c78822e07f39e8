"""Dataset distillation by random truncated backpropagation through time, orchestrated by Ray."""

__version__ = "0.1.0"
"""Kept here, not asked of the installation: on a cluster the package may come as a job's working folder alone."""
