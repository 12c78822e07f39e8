"""The verb `plan`: estimate a run's time and memory, and print it as a table."""

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import NOTHING_WRITTEN, bar, check_new_file, exit_codes, print_lines, stdout
from ray_distill.cli.options import Experiment, JsonFile, Set
from ray_distill.config.load import load_config

if TYPE_CHECKING:
    from ray_distill.planning.estimate import PlanRow, ProbeResults
    from ray_distill.planning.memory_fit import Suggestion


def plan(
    config_file: Experiment,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="GIB",
            min=0.1,
            help="Memory of the machine with all the workers, or of each GPU. Default: this machine's.",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Measure compiled step functions, which long runs use; compiling takes minutes. Default: eager ones.",
        ),
    ] = False,
    json_file: JsonFile = None,
    set_: Set = None,
) -> None:
    """Estimate a run's time and memory with 1, 2, 4 and 8 workers, before it starts.

    Measures a few steps on this machine, in about a minute. Well-known datasets need not be downloaded. If the run needs
    too much memory, suggests which setting to lower, and to what.
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.planning.estimate import GIB, probe
        from ray_distill.planning.memory_fit import plan_record, setting_to_lower
        from ray_distill.planning.probes import probe_device
        from ray_distill.utils.atomic import write_json
        from ray_distill.utils.memory import device_memory_bytes

        check_new_file(json_file, "--json")
        config = load_config(config_file, set_ or [])
        memory_bytes = int(memory * GIB) if memory else device_memory_bytes(probe_device(config))
        probed = probe(config, memory_bytes=memory_bytes, compiled=compiled, bar=bar)
        suggestion = setting_to_lower(probed)
        if json_file is not None:
            write_json(json_file, plan_record(probed, suggestion))
        _print_plan(probed, suggestion)


def _print_plan(probed: "ProbeResults", suggestion: "Suggestion | None") -> None:
    from ray_distill.planning.estimate import table_rows

    plan_rows = table_rows(probed)
    print_lines(*_measurements(probed))
    stdout.print(_table(probed, plan_rows))
    configured = next(row for row in plan_rows if row.workers == probed.config.cluster.num_workers)
    print_lines(
        *_limits(probed, plan_rows),
        _memory(probed),
        *_notes(probed),
        _verdict(probed, configured, suggestion),
    )


def _measurements(probed: "ProbeResults") -> list[str]:
    """The data, and the seconds of each kind of step."""
    from ray_distill.utils.timing import device_name

    config, images, group = probed.config, probed.images, probed.groups[1]
    shape, batch = "x".join(map(str, images.shape)), config.outer.batch_size
    device = device_name("cuda" if probed.on_gpu else "cpu")
    threads = "" if probed.on_gpu else f", {config.cluster.cpus_per_worker} thread(s) per worker"
    loss = group.seconds_of_loss(batch)
    scaled = "" if group.batch.images >= batch else f" (measured with {group.batch.images} of them)"
    compiled = f"compiled in {group.steps.compile_s:.0f} s" if group.steps.compile_s else "not compiled"
    replayed = f", {group.mean.replayed:.4g} of them twice" if group.mean.replayed else ""
    return [
        f"{config.name}: {shape} images of {images.num_classes} classes, {images.num_train} for training and "
        f"{images.num_validation} for validation ({images.known_by})",
        f"measured on {device}{threads}, {compiled}: burn-in step {_seconds(group.steps.burn_in_step_s)}, window step "
        f"{_seconds(group.steps.window_step_s)}, outer loss of {batch} images {_seconds(loss)}{scaled}",
        f"inner steps per outer step and replica, on average: {group.mean.burn_in:.4g} in the burn-in, "
        f"{group.mean.window:.4g} in the window{replayed}",
    ]


def _table(probed: "ProbeResults", plan_rows: "list[PlanRow]") -> Table:
    """A row for each number of workers."""
    total = "GiB/GPU" if probed.on_gpu else "GiB in total"
    headings = ("workers", "s/step", "s/validation", "hours", "device-hours", "GiB/worker", total)
    table = Table(*headings, box=None, padding=(0, 1, 0, 0))
    for r in plan_rows:
        workers = f"{r.workers} ({r.idle} idle)" if r.idle else str(r.workers)
        times = (r.outer_step_s, r.validation_s, r.run_s / 3600, r.device_s / 3600)
        table.add_row(workers, *map(_number, times), _gib(r.worker_bytes), _gib(r.needed_bytes))
    return table


def _limits(probed: "ProbeResults", plan_rows: "list[PlanRow]") -> list[str]:
    """Which rows cannot be run, and why."""
    cores, cpus = os.cpu_count() or 1, probed.config.cluster.cpus_per_worker
    lines = []
    if idle := [r.workers for r in plan_rows if r.idle]:
        lines.append(
            f"{_list(idle)} workers: not allowed, more than the {len(probed.sizes)} group(s) of replicas"
        )
    if large := [r.workers for r in plan_rows if not probed.on_gpu and (r.workers - r.idle) * cpus > cores]:
        lines.append(f"{_list(large)} workers: need more than this machine's {cores} cores")
    if heavy := [r.workers for r in plan_rows if not r.fits]:
        lines.append(f"{_list(heavy)} workers: do not fit in the memory of one such machine or GPU")
    return lines


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _memory(probed: "ProbeResults") -> str:
    """A worker's memory by what it is for."""
    memory = probed.memory
    sizes = {
        "libraries": memory.libraries,
        "real images": memory.data,
        "states of a window": memory.states,
        "activations of a microbatch": memory.passes,
        "real batch": memory.batch_held,
        "drawing the real batch": memory.batch_drawn,
        "validation": memory.scoring,
    }
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items() if size)
    shared = f"; shared by all workers: {_gib(probed.shared_bytes())}" if probed.shared_bytes() else ""
    mapped = "" if memory.data else f"; real images, mapped from a file: {_gib(probed.data_bytes)}"
    return f"GiB per worker, not all at the same time: {parts}{shared}{mapped}"


def _notes(probed: "ProbeResults") -> list[str]:
    """What the estimate leaves out or assumes."""
    steps = probed.groups[1].steps
    notes = [
        "hours: the outer loop alone, without starting Ray and without the evaluation, on devices like this one"
    ]
    if steps.compile_failed:
        notes.append(f"compiling failed ({steps.compile_failed}); measured without")
    elif not steps.compile_s and _would_compile(probed):
        notes.append(
            "a run of this length compiles its step functions and will be faster; --compile measures it"
        )
    if getattr(probed.config.truncation, "patience", None):
        notes.append(
            "a forward curriculum's window moves as the loss falls; assumed to be half-way on average"
        )
    return notes


def _would_compile(probed: "ProbeResults") -> bool:
    from ray_distill.builders.experiment import build_experiment
    from ray_distill.planning.probes import probe_device

    config, images = probed.config, probed.images
    return build_experiment(
        config, images.shape, images.num_classes, probe_device(config)
    ).inner.functions.compiled


def _verdict(probed: "ProbeResults", row: "PlanRow", suggestion: "Suggestion | None") -> str:
    """Whether the configured number of workers fits, and what to lower if not."""
    fits = "fits" if row.fits else "does NOT fit"
    verdict = f"{row.workers} worker(s), as configured: {fits}, {_gib(row.needed_bytes)} of {_gib(probed.memory_bytes)} GiB"
    if row.fits:
        return verdict
    if suggestion is None:
        return (
            f"{verdict}; no single setting is enough: lower network.width, or use a machine with more memory"
        )
    return (
        f"{verdict}; lower {suggestion.key} from {suggestion.now:g} to {suggestion.to:g} ({suggestion.part}: "
        f"{_gib(suggestion.part_bytes)} GiB)"
    )


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
