"""A configuration's values as `core` takes them, whatever the data and the network."""

import torch

from ray_distill.config.config import Config
from ray_distill.config.schedules import ScheduledFloat, ScheduledInt, schedule
from ray_distill.config.truncation import BpttConfig, ForwardConfig, RatBpttConfig, RbpttConfig, TbpttConfig
from ray_distill.core.inner_optimizer import SGD, Adam, InnerOptimizer
from ray_distill.core.schedules import Constant, Schedule, integer_at
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, ForwardCurriculum, RaTBPTT, Truncation

CPU = torch.device("cpu")


def dtype(config: Config) -> torch.dtype:
    """The type of all tensors of the run; TF32 and bfloat16 are ways to multiply float32."""
    return torch.float64 if config.precision == "float64" else torch.float32


def device_of(config: Config) -> torch.device:
    """Of a process by itself; Ray Train tells its workers which of several GPUs is theirs."""
    return torch.device("cuda" if config.cluster.use_gpu else "cpu")


def set_tf32(config: Config) -> None:
    """Have this process multiply float32 in TF32 where the configuration says so, and nowhere else."""
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def over_the_run(config: Config, value: ScheduledFloat | ScheduledInt) -> Schedule:
    """A value of the configuration as a function of the outer step."""
    return schedule(value, config.outer.steps)


def evaluation_inner_lr(config: Config) -> float:
    """The inner step size at the last outer step, which all networks that judge D are trained with."""
    return over_the_run(config, config.inner.lr).at(config.outer.steps - 1)


def inner_optimizer(config: Config) -> InnerOptimizer:
    """The optimiser of all networks that judge D; those that D is learnt through may have another lr."""
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


def truncation(config: Config) -> tuple[Truncation, int]:
    """The truncation rule and how many outer steps share a window."""
    section = config.truncation
    unroll = over_the_run(config, section.unroll_length)
    match section:
        case BpttConfig():
            return BPTT(unroll_length=unroll), 1
        case RbpttConfig():
            return RBPTT(unroll_length=unroll), section.redraw_every
    window = over_the_run(config, section.window_length)
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
    """The most inner steps that any outer step may differentiate."""
    rule, _ = truncation(config)
    lengths = rule.window_length if hasattr(rule, "window_length") else rule.unroll_length
    # A constant is not looked up tens of millions of times.
    steps = 1 if isinstance(lengths, Constant) else config.outer.steps
    return max(integer_at(lengths, step) for step in range(steps))
