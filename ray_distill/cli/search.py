"""The verb `search`: which window, which unroll, which learning rates for these data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ray_distill.cli.console import (
    BEGAN,
    Out,
    Set,
    bar,
    exit_codes,
    stderr,
    stdout,
)
from ray_distill.search.config import SearchConfig, load_search

if TYPE_CHECKING:
    from ray_distill.search.run import SearchResult
    from ray_distill.search.search_dir import SearchDir

WIDE = 500
"""Columns: more than any table needs."""


def search(
    search_file: Annotated[
        Path, typer.Argument(metavar="SEARCH.yaml", help="The search: see experiments/search_*.yaml.")
    ],
    out: Out = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the search in the folder: trials that have ended stay, others go on from their last "
            "checkpoint. With more budget.trials it is extended.",
        ),
    ] = False,
    finalise: Annotated[
        bool,
        typer.Option(
            "--finalise",
            help="Distil with the best configuration for all the base's outer steps, and evaluate the result.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the search and its trials and stop; nothing is written.")
    ] = False,
    set_: Set = None,
) -> None:
    """Search for a configuration: many short distillations, compared on validation, the bad ones stopped early.

    Leaves a leaderboard, the best distilled set, and best.yaml, which is ready for `distill`.
    """
    with exit_codes("`ray-distill search SEARCH.yaml --out DIR --resume` goes on with all trials"):
        settings = load_search(search_file, set_ or [])
        if dry_run:
            _say_search(settings)
            return
        _run(settings, out, resume=resume, finalise=finalise)


def _run(settings: SearchConfig, out: Path | None, *, resume: bool, finalise: bool) -> None:
    from ray_distill.cluster.connection import ray_while_preparing
    from ray_distill.pipeline import (
        finalise_search,
        local_store_warning,
        open_search_folder,
        prepare,
        prepare_development,
    )
    from ray_distill.search.run import run_search

    advice = "Use --resume to go on with the search in it, or another --out."
    folder, uri = open_search_folder(settings, out, resume=resume, advice=advice)
    _say_plan(settings, folder.path)
    if note := local_store_warning(folder.storage, uri, "search"):
        stderr.print(f"note: {note}", markup=False, highlight=False)
    get = prepare if finalise else prepare_development
    dashboard = settings.workers > 1
    with ray_while_preparing(lambda: get(settings.config, uri, bar), dashboard=dashboard) as real:
        found = run_search(settings, real, folder, uri, bar, resume=resume, began=BEGAN)
        _say_found(found, folder)
        if finalise:
            place, _ = finalise_search(found, real, folder, uri, bar)
            stdout.print(f"evaluated: {place.summary}", markup=False, highlight=False)


def _say_search(settings: SearchConfig) -> None:
    print(settings.to_yaml(), end="")
    print(f"# hash {settings.hash}")
    if settings.algorithm != "optuna":
        from ray_distill.search.sampler import planned_values, trial_name

        for number, values in enumerate(planned_values(settings)):
            print(f"# {trial_name(number)}: {', '.join(f'{k}={v}' for k, v in values.items())}")


def _say_plan(settings: SearchConfig, folder: Path) -> None:
    stdout.print(
        f"{settings.name}: {settings.num_trials} trials of {settings.outer_steps} outer steps around "
        f"{settings.config.name}, by {settings.algorithm} over {', '.join(settings.space)}, scheduler "
        f"{settings.scheduler.name}; results in {folder}"
        f"{f', kept in {storage}' if (storage := settings.config.cluster.storage) else ''}",
        markup=False,
        highlight=False,
    )


def _say_found(found: "SearchResult", folder: "SearchDir") -> None:
    from ray_distill.search.results import terminal_table
    from ray_distill.tracking.uri import ui_command

    # Where there is no terminal Rich takes 80 columns, too few for the searched keys, and cuts off what is in them.
    (stdout if stdout.is_terminal else Console(width=WIDE)).print(terminal_table(found.rows))
    stdout.print(str(found.time), markup=False, highlight=False)
    for warning in found.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    files: dict[str, object] = {
        "best": folder.best,
        "its set": folder.artifact,
        "leaderboard": folder.path / "leaderboard.md",
    }
    if folder.storage:
        files["kept in"] = folder.storage
    files["MLflow"] = ui_command(found.tracker.uri)
    lines = [f"  {what:<14}{path}" for what, path in files.items()]
    stdout.print("\n".join(lines), markup=False, highlight=False)
