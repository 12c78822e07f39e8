"""The adjoint is `higher` for combinations drawn at random: rule, optimiser, labels, augmentation, batches.

Also for how it is computed: form of the product, passes, replay. Each example is drawn from a seed of its
own, which its name shows, so a failure can be run again by that name.
"""

import random
from collections.abc import Callable

import pytest

from ray_distill.core.augment import OPERATIONS
from ray_distill.core.higher_reference import higher_metagradient
from ray_distill.core.inner_optimizer import SGD, Adam, InnerOptimizer
from ray_distill.core.metagradient import adjoint_metagradient
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Constant
from ray_distill.core.step_functions import PRODUCTS
from ray_distill.core.truncation import (
    BPTT,
    RBPTT,
    TBPTT,
    CurriculumState,
    ForwardCurriculum,
    RaTBPTT,
    Window,
)

UNROLL = 9
EXAMPLES = range(60)


def draw_optimizer(pick: random.Random) -> InnerOptimizer:
    if pick.random() < 0.4:
        return SGD(
            lr=pick.uniform(0.01, 0.1),
            momentum=pick.choice([0.0, 0.9]),
            weight_decay=pick.choice([0.0, 5e-3]),
        )
    betas = {"beta1": pick.choice([0.9, 0.5]), "beta2": pick.choice([0.999, 0.9])}
    return Adam(lr=pick.uniform(1e-3, 1e-2), eps_convention=pick.choice(["torch", "higher"]), **betas)


def draw_window(pick: random.Random, seed: int) -> tuple[str, Window]:
    unroll, window = Constant(UNROLL), Constant(pick.randint(1, 5))
    stream = Stream(seed=seed, name="window", outer_step=seed)
    rule = EXAMPLES.index(seed) % 5  # every rule in turn
    if rule == 0:
        return "bptt", BPTT(unroll_length=unroll).draw(stream)
    if rule == 1:
        return "t-bptt", TBPTT(unroll_length=unroll, window_length=window).draw(stream)
    if rule == 2:
        return "r-bptt", RBPTT(unroll_length=unroll).draw(stream)
    if rule == 3:
        return "rat-bptt", RaTBPTT(unroll_length=unroll, window_length=window).draw(stream)
    forward = ForwardCurriculum(unroll_length=unroll, window_length=window, patience=1)
    moved = forward.update(1, forward.update(0, CurriculumState(), 1.0), 1.0)
    return "forward", forward.draw(2, moved)


@pytest.mark.parametrize("seed", EXAMPLES)
def test_adjoint_is_higher(make_case: Callable, relative_difference: Callable, seed: int) -> None:
    """1e-8 in float64, images and labels; the labels are soft ones, or hard ones after some learning."""
    pick = random.Random(seed)
    ipc, mode = pick.randint(1, 3), pick.choice(["single", "composed"])
    # A colour operation needs more than one channel; conftest's images have two.
    operations = tuple(pick.sample(sorted(OPERATIONS), pick.randint(0, len(OPERATIONS))))
    convnet = f"convnet{pick.randint(1, 2)}{pick.choice(['', '-none', '-bn', '-ln'])}"
    network = convnet if pick.random() < 0.7 else pick.choice(["mlp1", "mlp2"])
    what = {
        "network": network,
        "ipc": ipc,
        "inner_batch_per_class": pick.randint(1, ipc),
        "classes_per_inner_batch": pick.choice([None, 2]),
        "augmentation": operations,
        "augmentation_mode": mode,
        "optimizer": draw_optimizer(pick),
        "inner_steps": UNROLL,
        "seed": seed,
    }
    rule, window = draw_window(pick, seed)
    how = {
        "product_form": pick.choice(PRODUCTS),
        "images_per_pass": None if network.endswith("-bn") else pick.choice([None, 1, 2, 4]),
        "max_states": pick.choice([None, 6]),
    }
    case = make_case(**what, **how)
    data = case.data
    if pick.random() < 0.5:
        # Learnt labels: clamped at 0 by an outer step, so that some entries of the target are exactly 0.
        outer = OuterOptimizer(lr=Constant(0.2), label_lr_scale=0.5)
        grad = adjoint_metagradient(case.problem, data, case.draws, window, case.real).grad
        data, _, _ = outer.step(data, outer.init(data), grad, 0)
        assert bool((data.labels_NK >= 0).all())
    ours, reference = (
        engine(case.problem, data, case.draws, window, case.real)
        for engine in (adjoint_metagradient, higher_metagradient)
    )
    assert float(ours.outer_loss) == pytest.approx(float(reference.outer_loss), rel=1e-9)
    for a, b in zip(ours.grad, reference.grad, strict=True):
        if float(b.norm()) == 0.0:  # a network that is dead on what it sees
            assert float(a.norm()) == 0.0
            continue
        assert relative_difference(a, b) < 1e-8, (rule, window, what, how)
