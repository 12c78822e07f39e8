"""A configuration's values as `core` takes them, whatever the data and the network."""

from dataclasses import asdict
from typing import Any

import torch

from ray_distill.config.config import Config
from ray_distill.config.schedules import ScheduledFloat, ScheduledInt, schedule
from ray_distill.config.truncation import BpttConfig, ForwardConfig, RatBpttConfig, RbpttConfig, TbpttConfig
from ray_distill.core.inner_optimizer import SGD, Adam, InnerOptimizer
from ray_distill.core.schedules import Constant, Schedule, integer_at
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, ForwardCurriculum, RaTBPTT, Truncation

CPU = torch.device("cpu")


def dtype(config: Config) -> torch.dtype:
    """The dtype of the run's tensors: float32 for TF32 and bfloat16 too, which only affect how it computes."""
    return torch.float64 if config.precision == "float64" else torch.float32


def device_for(config: Config) -> torch.device:
    """The device of a single process; Ray Train assigns its workers theirs."""
    return torch.device("cuda" if config.cluster.use_gpu else "cpu")


def set_tf32(config: Config) -> None:
    """Allow TF32 in this process if the configuration asks for it, and forbid it otherwise."""
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def run_schedule(config: Config, value: ScheduledFloat | ScheduledInt) -> Schedule:
    """A value of the configuration as a function of the outer step."""
    return schedule(value, config.outer.steps)


def evaluation_inner_lr(config: Config) -> float:
    """The inner lr at the last outer step, with which all evaluation networks are trained."""
    return run_schedule(config, config.inner.lr).at(config.outer.steps - 1)


def inner_optimizer(config: Config) -> InnerOptimizer:
    """The optimiser of all evaluation networks; during distillation its lr follows the schedule."""
    inner, lr = config.inner, evaluation_inner_lr(config)
    if inner.optimizer == "sgd":
        assert inner.momentum is not None
        assert inner.weight_decay is not None
        return SGD(lr=lr, momentum=inner.momentum, weight_decay=inner.weight_decay)
    return Adam(lr=lr, eps_convention=inner.eps_convention or "torch")


def inner_batch_size(config: Config, num_classes: int) -> int:
    """Images in an inner batch."""
    return (config.inner.batch_per_class or config.distilled.ipc) * (
        config.inner.classes_per_batch or num_classes
    )


def truncation_rule(config: Config) -> tuple[Truncation, int]:
    """The truncation rule and how many outer steps share a window."""
    section = config.truncation
    unroll = run_schedule(config, section.unroll_length)
    match section:
        case BpttConfig():
            return BPTT(unroll_length=unroll), 1
        case RbpttConfig():
            return RBPTT(unroll_length=unroll), section.redraw_every
    window = run_schedule(config, section.window_length)
    match section:
        case TbpttConfig():
            return TBPTT(unroll_length=unroll, window_length=window), 1
        case RatBpttConfig(min_window_start=earliest):
            rule = RaTBPTT(unroll_length=unroll, window_length=window, min_window_start=earliest)
            return rule, section.redraw_every
        case ForwardConfig(min_window_start=earliest, patience=patience):
            forward = ForwardCurriculum(
                unroll_length=unroll, window_length=window, min_window_start=earliest, patience=patience
            )
            return forward, 1


def longest_window(config: Config) -> int:
    """The largest number of inner steps that any outer step differentiates."""
    rule, _ = truncation_rule(config)
    lengths = rule.window_length if hasattr(rule, "window_length") else rule.unroll_length
    # A constant need not be evaluated at every step.
    steps = 1 if isinstance(lengths, Constant) else config.outer.steps
    return max(integer_at(lengths, step) for step in range(steps))


def training_protocol(config: Config, num_classes: int) -> dict[str, Any]:
    """How evaluation networks are trained, as plain data for an artefact's metadata."""
    inner = config.inner
    return {
        "network": config.network.model_dump(mode="json"),
        "optimizer": {"name": inner.optimizer, **asdict(inner_optimizer(config))},
        "batch_per_class": inner.batch_per_class or config.distilled.ipc,
        "classes_per_batch": inner.classes_per_batch or num_classes,
        "augmentation": list(inner.augmentation),
        "augmentation_mode": inner.augmentation_mode,
        "inner_steps": config.evaluation.horizons[-1],
    }
