"""The verb `plan`: what a run takes, printed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import Set, bar, check_target, exit_codes, stdout
from ray_distill.config.load import load_config

if TYPE_CHECKING:
    from ray_distill.planning.estimate import PlanRow, Probed
    from ray_distill.planning.memory_fit import Suggestion


def plan(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment: see experiments/.")
    ],
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="GIB",
            min=0.1,
            help="What there is for the run: on the machine that has all workers, or on each GPU. Default: as here.",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Probe compiled step functions, as long runs have them; compiling takes minutes. Otherwise eager ones.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures here. Never overwrites."),
    ] = None,
    set_: Set = None,
) -> None:
    """Say what a run takes before it starts: seconds per outer step, hours, memory; with 1, 2, 4 and 8 workers.

    Measures a few steps on this machine, in about a minute; needs none of the data for datasets that it knows by
    name. If the memory is not enough, it names the setting to lower, and to what.
    """
    with exit_codes("nothing was written"):
        from ray_distill.planning.estimate import GIB, probe
        from ray_distill.planning.memory_fit import record, setting_to_lower
        from ray_distill.planning.probes import device_of
        from ray_distill.utils.atomic import write_json
        from ray_distill.utils.memory import memory_of

        if json_file is not None:
            check_target(json_file, "--json")
        config = load_config(config_file, set_ or [])
        memory_bytes = int(memory * GIB) if memory else memory_of(device_of(config))
        probed = probe(config, memory_bytes=memory_bytes, compiled=compiled, bar=bar)
        lever = setting_to_lower(probed)
        if json_file is not None:
            write_json(json_file, record(probed, lever))
        _say(probed, lever)


def _say(probed: "Probed", lever: "Suggestion | None") -> None:
    from ray_distill.planning.estimate import rows

    every = rows(probed)
    stdout.print("\n".join(_measured(probed)), markup=False, highlight=False)
    stdout.print(_table(probed, every))
    own = next(row for row in every if row.workers == probed.config.cluster.num_workers)
    lines = [*_limits(probed, every), *_memory(probed), *_notes(probed), _verdict(probed, own, lever)]
    stdout.print("\n".join(lines), markup=False, highlight=False)


def _measured(probed: "Probed") -> list[str]:
    """What was run here, and what it took."""
    from ray_distill.utils.timing import device_name

    config, images, group = probed.config, probed.images, probed.groups[1]
    shape, batch = "x".join(map(str, images.shape)), config.outer.batch_size
    where = device_name("cuda" if probed.on_gpu else "cpu")
    threads = "" if probed.on_gpu else f", {config.cluster.cpus_per_worker} thread(s) a worker"
    loss = group.seconds_of_loss(batch)
    measured = "" if group.batch.images >= batch else f" (measured on {group.batch.images} of them)"
    compiled = f"compiled in {group.steps.compile_s:.0f} s" if group.steps.compile_s else "not compiled"
    return [
        f"{config.name}: {shape} images of {images.num_classes} classes, {images.num_train} to train on and "
        f"{images.num_validation} held out ({images.known_by})",
        f"probed on {where}{threads}, {compiled}: a burn-in step {_s(group.steps.burn_in_step_s)}, a window step "
        f"{_s(group.steps.window_step_s)}, the outer loss of {batch} images {_s(loss)}{measured}",
        f"an outer step of a replica: {group.mean.burn_in:.4g} burn-in and {group.mean.window:.4g} window steps in the "
        f"mean{f', {group.mean.replayed:.4g} of them twice' if group.mean.replayed else ''}",
    ]


def _table(probed: "Probed", every: "list[PlanRow]") -> Table:
    """A row for each number of workers."""
    where = "GiB/GPU" if probed.on_gpu else "GiB in all"
    heads = ("workers", "s/step", "s/validation", "hours", "device-hours", "GiB each", where)
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    for r in every:
        workers = f"{r.workers} ({r.idle} idle)" if r.idle else str(r.workers)
        times = (r.outer_step_s, r.validation_s, r.run_s / 3600, r.device_s / 3600)
        sizes = (_gib(r.worker_bytes), _gib(r.needed_bytes))
        table.add_row(workers, *(_number(value) for value in times), *sizes)
    return table


def _limits(probed: "Probed", every: "list[PlanRow]") -> list[str]:
    """Which rows are no good."""
    cores = os.cpu_count() or 1
    lines = []
    if idle := [r.workers for r in every if r.idle]:
        lines.append(
            f"with {_list(idle)} workers some have none of the {len(probed.sizes)} group(s) of replicas, which is refused"
        )
    each = probed.config.cluster.cpus_per_worker
    if large := [r.workers for r in every if not probed.on_gpu and (r.workers - r.idle) * each > cores]:
        lines.append(f"{_list(large)} workers need more cores than the {cores} of this machine")
    if heavy := [r.workers for r in every if not r.fits]:
        lines.append(f"with {_list(heavy)} workers on one machine or GPU like this one: too much memory")
    return lines


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _memory(probed: "Probed") -> list[str]:
    """The parts of a worker's memory."""
    memory = probed.memory
    parts = {
        "libraries": memory.libraries,
        "real images": memory.data,
        "states of a window": memory.states,
        "activations of a pass": memory.passes,
        "real batch": memory.batch_held,
        "drawing it": memory.batch_drawn,
        "scoring in validation": memory.scoring,
    }
    said = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    shared = f"; on the machine once: {_gib(probed.shared_bytes())}" if probed.shared_bytes() else ""
    mapped = (
        "" if memory.data else f"; beside it, mapped from a file, the real images: {_gib(probed.data_bytes)}"
    )
    return [f"GiB of a worker, not all at one time: {said}{shared}{mapped}"]


def _notes(probed: "Probed") -> list[str]:
    """What these figures are not."""
    steps = probed.groups[1].steps
    notes = [
        "each worker on a device like this one; hours: from the first outer step to the last, without Ray's start and the "
        "evaluation"
    ]
    if steps.compile_failed:
        notes.append(f"could not be compiled ({steps.compile_failed}); probed without")
    elif not steps.compile_s and _would_compile(probed):
        notes.append(
            "a run of this length compiles its step functions first, which this probe did not: expect less time (--compile "
            "measures it)"
        )
    if getattr(probed.config.truncation, "patience", None):
        notes.append(
            "where a forward curriculum's window stands is not known beforehand: counted as half-way"
        )
    return notes


def _would_compile(probed: "Probed") -> bool:
    from ray_distill.builders.experiment import build_experiment
    from ray_distill.planning.probes import device_of

    config, images = probed.config, probed.images
    return build_experiment(
        config, images.shape, images.num_classes, device_of(config)
    ).inner.functions.compiled


def _verdict(probed: "Probed", own: "PlanRow", lever: "Suggestion | None") -> str:
    there = f"of {_gib(probed.memory_bytes)} GiB"
    if own.fits:
        return f"with {own.workers} worker(s), as configured: fits, {_gib(own.needed_bytes)} {there}"
    said = f"with {own.workers} worker(s), as configured: does NOT fit, {_gib(own.needed_bytes)} {there}; "
    if lever is None:
        return (
            said
            + "no one setting is enough to lower; lower network.width, or take a machine with more memory"
        )
    return (
        said
        + f"lower {lever.key} from {lever.now:g} to {lever.to:g} ({lever.part}: {_gib(lever.part_bytes)} GiB)"
    )


def _s(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
