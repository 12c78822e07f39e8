"""A distillation on Ray Train: the trainer, its workers, checkpoints and what is recorded meanwhile."""
