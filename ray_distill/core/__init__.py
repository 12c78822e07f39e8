"""Numbers only: torch and the standard library.

Nothing here knows of Ray, MLflow, configuration, files, logging, the choice of a device or a global
random generator. Values come in, values go out, and every random draw is an argument's consequence.

Legend of the axes that tensor names carry, here and in the modules above:
N images of a set, B images of a batch, K classes, C channels, H height, W width, P parameters of a
network (flattened into one vector), T inner steps.

Source of the method: Feng, Vedantam and Kempe, "Embarrassingly Simple Dataset Distillation",
ICLR 2024 ("the paper").
"""
