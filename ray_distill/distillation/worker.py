"""What a process needs to distil, built from the configuration and the handle of its real images.

A Ray Train worker and a trial of a search open the same workplace, so that a run's numbers do not depend on
which of them carries it out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ray_distill.builders import settings
from ray_distill.builders.experiment import build_experiment, initial_distilled_data, to_run_device
from ray_distill.config.config import Config
from ray_distill.core.distributed import Communicator
from ray_distill.core.outer_loop import Experiment
from ray_distill.core.state import RunState
from ray_distill.core.unroll import draw_inner, inner_batch
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DataHandle, open_development


@dataclass(frozen=True, eq=False)
class WorkerContext:
    """An experiment and its real data on a device."""

    config: Config
    device: torch.device
    experiment: Experiment
    train: RealData
    validation: RealData

    @cached_property
    def start(self) -> RunState:
        """The state before the first outer step."""
        return RunState.start(
            initial_distilled_data(self.config, self.train, self.device), self.experiment.outer
        )

    @property
    def compiles(self) -> bool:
        """Whether the step functions are to be compiled, which takes a minute or so."""
        return self.experiment.inner.functions.compiled

    def compile(self, state: RunState, world: Communicator) -> str:
        """Compile the step functions for this process's groups of replicas; says what became of it."""
        began, experiment = time.perf_counter(), self.experiment
        draws = draw_inner(experiment.inner, experiment.seed, state.outer_step, 0, 1, state.data)
        # Validation networks are trained one by one.
        sizes = {1, *(len(group) for group in experiment.groups[world.rank :: world.size])}
        batch = inner_batch(state.data, draws, 0)
        why = experiment.inner.functions.try_compile(draws.theta_P, batch, sorted(sizes))
        return f"not compiled ({why})" if why else f"compiled in {time.perf_counter() - began:.0f} s"


def open_worker_context(
    config: Config, data: DataHandle, fitted: Callable[[], Preprocessing], device: torch.device
) -> WorkerContext:
    """The workplace of this process, whose threads and arithmetic it sets.

    Args:
        fitted: fetches the preprocessing of the real images, on a machine that lacks whitened ones.

    Raises: ConfigError if the configuration does not fit the data; DataError.
    """
    torch.set_num_threads(config.cluster.cpus_per_worker)
    settings.set_tf32(config)
    train, validation = (to_run_device(config, part, device) for part in open_development(data, fitted))
    experiment = build_experiment(config, train.image_shape, train.num_classes, device)
    return WorkerContext(config, device, experiment, train, validation)
