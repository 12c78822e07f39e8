"""The numerics, as pure functions of their arguments: torch and the standard library only.

Nothing here knows about Ray, MLflow, configuration, files, logging, device selection or a global random
generator; random draws come from streams passed as arguments.

Axes in tensor names, throughout the package:
N images of a set, B images of a batch, K classes, C channels, H height, W width, P parameters of a
network (flattened into one vector), T inner steps.

Source of the method: Feng, Vedantam and Kempe, "Embarrassingly Simple Dataset Distillation",
ICLR 2024 ("the paper").
"""
