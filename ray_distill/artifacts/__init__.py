"""Distilled datasets as files: ours, those of other methods, and exports for other readers."""
