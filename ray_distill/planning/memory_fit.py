"""Whether a planned run fits into memory, and which setting to lower if it does not.

A setting is suggested only if lowering it alone is enough; of several, the one with the largest part of the memory.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from ray_distill.builders import settings
from ray_distill.core.metagradient import segment_length
from ray_distill.planning.estimate import (
    GIB,
    GroupCost,
    ProbeResults,
    WorkerMemory,
    num_validations,
    table_rows,
)


class Suggestion(NamedTuple):
    """A setting to lower, and the part of the memory that it determines."""

    key: str
    part: str
    part_bytes: int
    now: float
    to: float
    """The largest value with which the run would fit, other settings unchanged."""


def setting_to_lower(probed: ProbeResults) -> Suggestion | None:
    """The setting to lower so that the configured number of workers fits.

    None: the run fits, or no single setting is enough.
    """
    workers = probed.config.cluster.num_workers
    if probed.needed_bytes(workers) <= probed.memory_bytes:
        return None
    memory, free_bytes = probed.memory, probed.free_bytes(workers)
    suggestions = [
        *_unroll_suggestions(probed, probed.groups[probed.sizes[0]], memory, free_bytes),
        *_real_image_suggestions(probed, memory, free_bytes),
    ]
    if suggestions:
        return max(suggestions, key=lambda suggestion: suggestion.part_bytes)
    return _fewer_workers(probed, workers, memory)


def _unroll_suggestions(
    probed: ProbeResults, group: GroupCost, memory: WorkerMemory, free_bytes: int
) -> Iterator[Suggestion]:
    """The memory for states, and the images per pass."""
    if max(memory.batch_drawn, memory.scoring) > free_bytes:
        return
    compute, too_much = probed.config.compute, memory.unrolled - free_bytes
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


def _can_replay(probed: ProbeResults, group: GroupCost, gib: float) -> bool:
    """Whether the longest window can be replayed in that much memory for states."""
    try:
        segment_length(settings.longest_window(probed.config), int(gib * GIB / group.steps.bytes_per_state))
    except ValueError:
        return False
    return True


def _real_image_suggestions(
    probed: ProbeResults, memory: WorkerMemory, free_bytes: int
) -> Iterator[Suggestion]:
    """The real batch, and the batch of held-out images in validation."""
    config, images = probed.config, probed.images
    size, held, drawn = config.outer.batch_size, memory.batch_held, memory.batch_drawn
    count = images.num_train + images.num_validation
    if memory.scoring <= free_bytes:
        fewer = min(
            size * (held - memory.unrolled + free_bytes) // max(1, held), size * free_bytes // max(1, drawn)
        )
        if 1 <= fewer < size:
            yield Suggestion("outer.batch_size", "the real batch", max(held, drawn), size, fewer)
    if max(memory.unrolled, drawn) <= free_bytes:
        fewer = probed.validation.images * free_bytes // max(1, memory.scoring)
        if images.num_classes <= fewer < probed.validation.images:
            part, now = "the held-out images that are scored at once", config.data.validation_fraction
            # Two significant digits, rounded down.
            digits = 10 ** (1 - math.floor(math.log10(fewer / count)))
            yield Suggestion(
                "data.validation_fraction",
                part,
                memory.scoring,
                now,
                math.floor(fewer / count * digits) / digits,
            )


def _fewer_workers(probed: ProbeResults, workers: int, memory: WorkerMemory) -> Suggestion | None:
    """As many workers as fit on this machine."""
    if probed.on_gpu:
        return None
    most = (probed.memory_bytes - probed.shared_bytes()) // memory.total
    part_bytes = workers * memory.total
    return (
        Suggestion("cluster.num_workers", "the workers", part_bytes, workers, most)
        if 1 <= most < workers
        else None
    )


def plan_record(probed: ProbeResults, suggestion: Suggestion | None) -> dict[str, Any]:
    """The plan as plain data: the probes, and the estimates from them."""
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
        "rows": [asdict(r) for r in table_rows(probed)],
        "setting_to_lower": suggestion._asdict() if suggestion else None,
    }
