"""Small inner problems for the tests of core, in float64 unless said."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from ray_distill.core.augment import Augmentation, Mode
from ray_distill.core.distilled import DistilledData, noise, unit_noise
from ray_distill.core.inner_optimizer import Adam, InnerOptimizer
from ray_distill.core.networks.network import Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerDraws, InnerProblem, draw_inner


@dataclass(frozen=True, kw_only=True)
class Case:
    """One inner problem with its data, its draws and a real batch, by the fields that matter to a test."""

    network: str = "convnet1"
    width: int = 4
    image_shape: tuple[int, int, int] = (2, 8, 8)
    num_classes: int = 3
    ipc: int = 2
    inner_batch_per_class: int | None = None
    classes_per_inner_batch: int | None = None
    augmentation: tuple[str, ...] = ()
    optimizer: InnerOptimizer = field(default_factory=lambda: Adam(lr=1e-2))
    augmentation_mode: Mode = "single"
    inner_steps: int = 11
    dtype: torch.dtype = torch.float64
    seed: int = 7
    replica: int = 0
    outer_step: int = 0
    product_form: str = "reverse"
    images_per_pass: int | None = None
    max_states: int | None = None
    module: nn.Module | None = None
    """A module on the meta device that stands in for the named network."""

    def stream(self, name: str) -> Stream:
        return Stream(seed=self.seed, name=name)

    @property
    def problem(self) -> InnerProblem:
        spec = NetworkSpec(name=self.network, width=self.width)
        network = (
            build_network(spec, self.image_shape, self.num_classes)
            if self.module is None
            else Network(self.module)
        )
        batch = self.ipc if self.inner_batch_per_class is None else self.inner_batch_per_class
        return InnerProblem(
            functions=StepFunctions(
                network, product_form=self.product_form, images_per_pass=self.images_per_pass
            ),
            optimizer=self.optimizer,
            augmentation=Augmentation(self.augmentation, self.augmentation_mode),
            inner_batch_per_class=batch,
            max_states=self.max_states,
            classes_per_inner_batch=self.classes_per_inner_batch,
        )

    def _soft_labels(self, name: str, rows: int) -> Tensor:
        """Positive rows whose sums differ from 1 and from each other, as learnt labels do."""
        uniform = self.stream(name).uniform(rows * self.num_classes, dtype=self.dtype)
        return uniform.reshape(rows, self.num_classes) + 0.1

    @property
    def data(self) -> DistilledData:
        n = self.num_classes * self.ipc
        # Norm 5 rather than the paper's 1: gradients well away from 0, so that the comparisons bite.
        images = 5.0 * unit_noise(self.stream("test-data"), n, self.image_shape, self.dtype)
        return DistilledData(images, self._soft_labels("test-labels", n))

    @property
    def real(self) -> DistilledData:
        images = noise(self.stream("test-real"), 6, self.image_shape, self.dtype)
        return DistilledData(images, self._soft_labels("test-real-labels", 6))

    @property
    def draws(self) -> InnerDraws:
        return draw_inner(self.problem, self.seed, self.outer_step, self.replica, self.inner_steps, self.data)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Case by keyword."""
    return Case


@pytest.fixture
def smooth_module() -> Callable[[], nn.Module]:
    """A convolutional network without kinks, for finite differences: conv, norm, softplus, pool, linear."""

    def build() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1),
                nn.GroupNorm(4, 4),
                nn.Softplus(),
                nn.AvgPool2d(4),
                nn.Flatten(),
                nn.Linear(16, 3),
            )

    return build
