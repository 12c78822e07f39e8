"""The verbs under `bench`; each benchmark is a module of `ray_distill.bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import (
    NOTHING_WRITTEN,
    bar,
    check_new_file,
    exit_codes,
    print_lines,
    stdout,
    warn,
)
from ray_distill.cli.options import JsonFile, Set

if TYPE_CHECKING:
    from ray_distill.bench.orchestration import Benchmark, OrchestrationRecord, Ratio

app = typer.Typer(
    help="Benchmark this package on this machine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

BUSY_LOAD = 0.3
"""Load per core above which a measurement comes with a warning."""

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG.yaml",
        show_default=False,
        help="An experiment to run instead of the built-in one. Its outer.steps and cluster are replaced.",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds",
        min=1.0,
        help="Approximate duration of the bare loop on one core, from which the number of outer steps follows.",
    ),
]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Runs of each of the two, in alternation.")]


@app.command()
def overhead(
    config_file: ConfigFile = None,
    seconds: Seconds = 60.0,
    repeats: Repeats = 2,
    json_file: JsonFile = None,
    set_: Set = None,
) -> None:
    """The overhead of Ray Train, MLflow and checkpoints: one worker against the bare outer loop.

    Both run the same experiment with one thread, each in its own process, and must produce the same distilled set, bit for
    bit. Compares the time from the start of the first outer step to the end of the last; start-up is reported separately.
    The goal: at most 3% for a run of 60 s.

    Use an idle machine. Takes about 5 minutes.
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.bench.orchestration import OVERHEAD

        records, ratio = _measure(OVERHEAD, config_file, seconds, repeats, json_file, set_ or [])
        pairs = ", ".join(f"{100 * (pair - 1):+.1f}%" for pair in ratio.pairs)
        bare, through_ray = ([r.startup_s for r in records if r.route == route] for route in ("bare", "ray"))
        print_lines(
            f"overhead of Ray Train, MLflow and checkpoints: {100 * (ratio.overall - 1):+.1f}% (by repeat: {pairs}); "
            f"start-up {sum(through_ray) / repeats:.1f} s instead of {sum(bare) / repeats:.1f} s"
        )


@app.command()
def workers(
    config_file: ConfigFile = None,
    seconds: Seconds = 40.0,
    repeats: Repeats = 2,
    json_file: JsonFile = None,
    set_: Set = None,
) -> None:
    """The speed-up by a second worker: two Ray Train workers against one, with one core each.

    Both run the same experiment, with an even number of replicas, and must produce the same distilled set, up to the order
    of a sum. Compares replicas per second: replicas x outer steps / seconds in the outer loop. The goal: at least 1.8.

    Use an idle machine. Takes about 5 minutes.
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.bench.orchestration import WORKERS

        _, ratio = _measure(WORKERS, config_file, seconds, repeats, json_file, set_ or [])
        pairs = ", ".join(f"{1 / pair:.2f}" for pair in ratio.pairs)
        print_lines(
            f"two workers: {1 / ratio.overall:.2f} times the replicas per second of one (by repeat: {pairs})"
        )


OWN_OPTIONS = {"ignore_unknown_options": True, "allow_extra_args": True}
"""For benchmarks that also run without typer, and parse their options themselves."""


@app.command(context_settings=OWN_OPTIONS, add_help_option=False)
def metagradient(arguments: typer.Context) -> None:
    """The metagradient by each engine, on the same problem: time, memory, error against float64.

    Each engine runs in its own process. Also runs as `python -m ray_distill.bench.metagradient`, which needs only torch
    (and higher, to compare with it).
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.bench.metagradient import main

        main(arguments.args)


@app.command(context_settings=OWN_OPTIONS, add_help_option=False)
def replicas(arguments: typer.Context) -> None:
    """Several replicas batched into one computation against one by one: speed, and that they agree.

    Also runs as `python -m ray_distill.bench.replicas`, which needs only torch.
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.bench.replicas import main

        main(arguments.args)


@app.command(context_settings=OWN_OPTIONS, add_help_option=False)
def seeds(arguments: typer.Context) -> None:
    """Several seeds of a network trained in one batched computation against one by one: speed, and that they agree.

    Also runs as `python -m ray_distill.bench.seeds`, which needs only torch.
    """
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.bench.seeds import main

        main(arguments.args)


def _measure(
    benchmark: "Benchmark",
    config_file: Path | None,
    seconds: float,
    repeats: int,
    json_file: Path | None,
    overrides: list[str],
) -> "tuple[list[OrchestrationRecord], Ratio]":
    """Run the benchmark, save its records and print them as a table."""
    from dataclasses import asdict

    from ray_distill.bench.orchestration import benchmark_config, machine_info, ratio, run_benchmark
    from ray_distill.utils.atomic import write_json

    check_new_file(json_file, "--json")
    config = benchmark_config(benchmark, config_file, overrides)
    machine = machine_info()
    load, cores = float(machine["load_1m_before"]), int(machine["cores"])
    if load > BUSY_LOAD * cores:
        warn(f"this machine is busy (load {load} on {cores} cores); other processes distort the result")
    with bar("measuring", 1 + 2 * repeats) as update:
        records = run_benchmark(benchmark, config, seconds, repeats, update)
    if json_file is not None:
        write_json(json_file, [asdict(record) for record in records])
    stdout.print(_table(records))
    return records, ratio(records, benchmark.variants)


def _table(records: "list[OrchestrationRecord]") -> Table:
    """Seconds of each run; those of the steps and of the validations are in the records."""
    caption = "in seconds; loop: from the first outer step to the last; other: the part of it that is neither step nor validation"
    table = Table("run", "steps", "start-up", "loop", "other", "total", "replicas/s", caption=caption)
    for r in records:
        name = "bare loop" if r.route == "bare" else f"Ray, {r.workers} worker{'s' * (r.workers > 1)}"
        seconds = (r.startup_s, r.steady_s, r.between_s, r.total_s)
        table.add_row(
            name, str(r.outer_steps), *(f"{s:.2f}" for s in seconds), f"{r.replicas_per_second:.2f}"
        )
    return table
