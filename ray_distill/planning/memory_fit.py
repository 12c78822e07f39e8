"""Whether a planned run fits into the memory, and which setting to lower if it does not.

A setting is proposed only if it is enough alone; of those, the one that governs the largest part.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from ray_distill.builders import settings
from ray_distill.core.metagradient import segment_length
from ray_distill.planning.estimate import GIB, Group, Probed, WorkerMemory, num_validations, rows


class Suggestion(NamedTuple):
    """A setting that governs a part of the memory."""

    key: str
    part: str
    part_bytes: int
    now: float
    to: float
    """The largest value with which the run would fit, all else as it is."""


def setting_to_lower(probed: Probed) -> Suggestion | None:
    """The setting to lower so that the configured number of workers fits.

    None: they fit as they are, or no setting is enough alone.
    """
    workers = probed.config.cluster.num_workers
    if probed.needed_bytes(workers) <= probed.memory_bytes:
        return None
    memory, room = probed.memory, probed.room(workers)
    levers = [
        *_of_the_unroll(probed, probed.groups[probed.sizes[0]], memory, room),
        *_of_the_real_images(probed, memory, room),
    ]
    if levers:
        return max(levers, key=lambda lever: lever.part_bytes)
    return _fewer_workers(probed, workers, memory)


def _of_the_unroll(probed: Probed, group: Group, memory: WorkerMemory, room: int) -> Iterator[Suggestion]:
    """How many states are kept, and how many images are in a pass."""
    if max(memory.batch_drawn, memory.scoring) > room:
        return
    compute, too_much = probed.config.compute, memory.unrolled - room
    gib = math.floor(100 * (memory.states - too_much) / GIB) / 100
    if 0 < gib < compute.state_memory_gib and _can_replay(probed, group, gib):
        yield Suggestion(
            "compute.state_memory_gib", "the states of a window", memory.states, compute.state_memory_gib, gib
        )
    size = group.steps.images_per_pass
    if size is None:
        return
    fewer = size * (memory.passes - too_much) // max(1, memory.passes)
    if 1 <= fewer < size:
        yield Suggestion("compute.images_per_pass", "the activations of a pass", memory.passes, size, fewer)


def _can_replay(probed: Probed, group: Group, gib: float) -> bool:
    """Whether the longest window fits into so much memory for states at all."""
    try:
        segment_length(settings.longest_window(probed.config), int(gib * GIB / group.steps.bytes_per_state))
    except ValueError:
        return False
    return True


def _of_the_real_images(probed: Probed, memory: WorkerMemory, room: int) -> Iterator[Suggestion]:
    """The real batch, and the held-out images that are scored at once."""
    config, images = probed.config, probed.images
    size, held, drawn = config.outer.batch_size, memory.batch_held, memory.batch_drawn
    count = images.num_train + images.num_validation
    if memory.scoring <= room:
        fewer = min(size * (held - memory.unrolled + room) // max(1, held), size * room // max(1, drawn))
        if 1 <= fewer < size:
            yield Suggestion("outer.batch_size", "the real batch", max(held, drawn), size, fewer)
    if max(memory.unrolled, drawn) <= room:
        fewer = probed.validation.images * room // max(1, memory.scoring)
        if images.num_classes <= fewer < probed.validation.images:
            part, now = "the held-out images that are scored at once", config.data.validation_fraction
            # Two digits, not rounded up.
            digits = 10 ** (1 - math.floor(math.log10(fewer / count)))
            yield Suggestion(
                "data.validation_fraction",
                part,
                memory.scoring,
                now,
                math.floor(fewer / count * digits) / digits,
            )


def _fewer_workers(probed: Probed, workers: int, memory: WorkerMemory) -> Suggestion | None:
    """As many as fit on this machine."""
    if probed.on_gpu:
        return None
    most = (probed.memory_bytes - probed.shared_bytes()) // memory.total
    part_bytes = workers * memory.total
    return (
        Suggestion("cluster.num_workers", "the workers", part_bytes, workers, most)
        if 1 <= most < workers
        else None
    )


def record(probed: Probed, lever: Suggestion | None) -> dict[str, Any]:
    """The plan as plain data: what was measured, and what follows."""
    config = probed.config
    return {
        "name": config.name,
        "config_hash": config.hash,
        "images": asdict(probed.images),
        "group_sizes": probed.sizes,
        "groups": {
            str(size): {
                "steps": group.steps._asdict(),
                "batch": group.batch._asdict(),
                "mean_inner_steps": group.mean._asdict(),
                "states_kept": group.states,
            }
            for size, group in probed.groups.items()
        },
        "validation": probed.validation._asdict(),
        "num_validations": num_validations(config),
        "memory_bytes": probed.memory_bytes,
        "memory_of_a_worker": asdict(probed.memory),
        "rows": [asdict(r) for r in rows(probed)],
        "setting_to_lower": lever._asdict() if lever else None,
    }
