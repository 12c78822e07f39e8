"""The verbs under `bench`: what is measured is in a module of its own for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ray_distill.cli.console import Set, bar, check_target, exit_codes, stderr, stdout

if TYPE_CHECKING:
    from ray_distill.bench.orchestration import Benchmark, OrchestrationRecord, Ratio

app = typer.Typer(
    help="Measure this package on this machine.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

BUSY = 0.3
"""Load per core from which a measurement comes with a warning."""

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG.yaml",
        show_default=False,
        help="An experiment to measure with, instead of the built-in one. Its outer.steps and cluster are replaced.",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds",
        min=1.0,
        help="About how long the bare loop should run on one core: sets the number of outer steps.",
    ),
]
Repeats = Annotated[
    int, typer.Option("--repeats", min=1, help="How often each of the two is run; they take turns.")
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write a list of records here, one per run, with machine and versions. Never overwrites.",
    ),
]


@app.command()
def overhead(
    config_file: ConfigFile = None,
    seconds: Seconds = 60.0,
    repeats: Repeats = 2,
    json_file: Json = None,
    set_: Set = None,
) -> None:
    """What Ray Train, MLflow and checkpoints cost: the bare outer loop against the real thing with one worker.

    Both run the same experiment with one thread, each in its own process, and must arrive at the same
    distilled set, bit for bit. Compared is the steady state: from the beginning of the first outer step to
    the end of the last. Start-up is told apart. At most 3% of a run of 60 s is what this package wants of itself.

    Measure on a machine that is doing nothing else. Takes about 5 minutes.
    """
    with exit_codes("nothing was written"):
        from ray_distill.bench.orchestration import OVERHEAD

        records, took = _measure(OVERHEAD, config_file, seconds, repeats, json_file, set_ or [])
        pairs = ", ".join(f"{100 * (pair - 1):+.1f}%" for pair in took.pairs)
        bare, through_ray = ([r.startup_s for r in records if r.route == route] for route in ("bare", "ray"))
        stdout.print(
            f"Ray Train, MLflow and checkpoints: {100 * (took.overall - 1):+.1f}% of the bare loop's time "
            f"(by repeat: {pairs}); start-up {sum(through_ray) / repeats:.1f} s instead of {sum(bare) / repeats:.1f} s",
            highlight=False,
        )


@app.command()
def workers(
    config_file: ConfigFile = None,
    seconds: Seconds = 40.0,
    repeats: Repeats = 2,
    json_file: Json = None,
    set_: Set = None,
) -> None:
    """What a second worker gains: one Ray Train worker against two, with one core each.

    Both run the same experiment, with an even number of replicas, and must arrive at the same distilled set, up
    to the order of a sum. Compared are replicas per second: replicas x outer steps / seconds of the steady
    state. At least 1.8 times as many with two workers is what this package wants of itself.

    Measure on a machine that is doing nothing else. Takes about 5 minutes.
    """
    with exit_codes("nothing was written"):
        from ray_distill.bench.orchestration import WORKERS

        _, took = _measure(WORKERS, config_file, seconds, repeats, json_file, set_ or [])
        pairs = ", ".join(f"{1 / pair:.2f}" for pair in took.pairs)
        stdout.print(
            f"two workers: {1 / took.overall:.2f} times the replicas per second of one (by repeat: {pairs})",
            highlight=False,
        )


STAND_ALONE = {"ignore_unknown_options": True, "allow_extra_args": True}
"""For verbs whose options belong to a module that runs without typer too."""


@app.command(context_settings=STAND_ALONE, add_help_option=False)
def metagradient(arguments: typer.Context) -> None:
    """The metagradient by each engine on the same work: seconds, memory, error against float64.

    Each engine runs in a process of its own. Its options are those of `python -m
    ray_distill.bench.metagradient --help`, which needs nothing but torch (and higher, to compare with).
    """
    with exit_codes("nothing was written"):
        from ray_distill.bench.metagradient import main

        main(arguments.args)


@app.command(context_settings=STAND_ALONE, add_help_option=False)
def replicas(arguments: typer.Context) -> None:
    """Several replicas as one computation against the same ones one by one: where it pays, and that they agree.

    Its options are those of `python -m ray_distill.bench.replicas --help`, which needs nothing but torch.
    """
    with exit_codes("nothing was written"):
        from ray_distill.bench.replicas import main

        main(arguments.args)


@app.command(context_settings=STAND_ALONE, add_help_option=False)
def seeds(arguments: typer.Context) -> None:
    """Several seeds of one network trained and scored at once against one by one: where it pays, and that they agree.

    Its options are those of `python -m ray_distill.bench.seeds --help`, which needs nothing but torch.
    """
    with exit_codes("nothing was written"):
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
    """Measure, keep the records and print them as a table."""
    from dataclasses import asdict

    from ray_distill.bench.orchestration import carry_out, experiment_of, ratio, this_machine
    from ray_distill.utils.atomic import write_json

    if json_file is not None:
        check_target(json_file, "--json")
    config = experiment_of(benchmark, config_file, overrides)
    machine = this_machine()
    if float(machine["load_1m_before"]) > BUSY * int(machine["cores"]):
        stderr.print(
            f"warning: this machine is busy (load {machine['load_1m_before']} on {machine['cores']} cores): "
            "what others do is measured too",
            highlight=False,
        )
    with bar("measuring", 1 + 2 * repeats) as update:
        records = carry_out(benchmark, config, seconds, repeats, update)
    if json_file is not None:
        write_json(json_file, [asdict(record) for record in records])
    stdout.print(_table(records))
    return records, ratio(records, benchmark.ways)


def _table(records: "list[OrchestrationRecord]") -> Table:
    """Seconds of each run; those of the steps and of the validations are in the records."""
    caption = "seconds; between: of the steady state, what is neither step nor validation"
    table = Table("run", "steps", "start-up", "steady", "between", "total", "replicas/s", caption=caption)
    for r in records:
        name = "bare loop" if r.route == "bare" else f"Ray, {r.workers} worker{'s' * (r.workers > 1)}"
        seconds = (r.startup_s, r.steady_s, r.between_s, r.total_s)
        table.add_row(
            name, str(r.outer_steps), *(f"{s:.2f}" for s in seconds), f"{r.replicas_per_second:.2f}"
        )
    return table
