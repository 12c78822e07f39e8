"""The verb `search`: find the window, the unroll and the learning rates for a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ray_distill.cli.console import STARTED, bar, exit_codes, fields, print_lines, stdout, warn
from ray_distill.cli.options import DryRun, Out, Resume, Set
from ray_distill.tuning.config import SearchConfig, load_search

if TYPE_CHECKING:
    from ray_distill.data.splits import DevelopmentData
    from ray_distill.tuning.run import SearchOutcome
    from ray_distill.tuning.search_dir import SearchDir

WIDE = 500
"""Columns: more than any table needs."""


def search(
    search_file: Annotated[
        Path,
        typer.Argument(metavar="SEARCH.yaml", help="The search; see experiments/search_*.yaml for examples."),
    ],
    out: Out = None,
    resume: Resume = False,
    finalise: Annotated[
        bool,
        typer.Option(
            "--finalise",
            help="Afterwards, distil with the best configuration for all outer steps of the base, and evaluate the result.",
        ),
    ] = False,
    dry_run: DryRun = False,
    set_: Set = None,
) -> None:
    """Search for a configuration: short distillations, compared on the validation split, bad ones stopped early.

    Writes a leaderboard, the best distilled set, and best.yaml, a configuration for `distill`. With `--resume`, finished
    trials are kept and the others continue; a larger `budget.trials` extends the search.
    """
    with exit_codes("resume with: ray-distill search SEARCH.yaml --out DIR --resume"):
        settings = load_search(search_file, set_ or [])
        if dry_run:
            _print_trials(settings)
            return
        _run(settings, out, resume=resume, finalise=finalise)


def _run(settings: SearchConfig, out: Path | None, *, resume: bool, finalise: bool) -> None:
    from ray_distill.storage.output_folder import local_store_warning
    from ray_distill.tuning.search_dir import open_search_folder

    advice = "Use --resume to continue the search in it, or another --out."
    folder, uri = open_search_folder(settings, out, resume=resume, advice=advice)
    print_lines(describe(settings, folder.path))
    if note := local_store_warning(folder.storage, uri, "search"):
        warn(note, "note")

    def prepare() -> "DevelopmentData":
        from ray_distill.pipeline import prepare, prepare_development

        return (prepare if finalise else prepare_development)(settings.config, uri, bar)

    from ray_distill.cluster.connection import ray_while_preparing

    with ray_while_preparing(prepare, dashboard=settings.workers > 1) as data:
        from ray_distill.pipeline import finalise_search
        from ray_distill.tuning.run import run_search

        result = run_search(settings, data, folder, uri, bar, resume=resume, began=STARTED)
        _print_result(result, folder)
        if finalise:
            run_folder, _ = finalise_search(result, data, folder, uri, bar)
            print_lines(*fields({"final run": run_folder.summary}))


def _print_trials(settings: SearchConfig) -> None:
    """The search as YAML, and its trials, as far as they are known before it runs, as comments."""
    print(f"{settings.to_yaml()}# hash {settings.hash}")
    if settings.algorithm != "optuna":
        from ray_distill.tuning.sampler import planned_values, trial_name

        for number, values in enumerate(planned_values(settings)):
            print(f"# {trial_name(number)}: {', '.join(f'{k}={v}' for k, v in values.items())}")


def describe(settings: SearchConfig, folder: Path) -> str:
    """A search in one line."""
    storage = settings.config.cluster.storage
    return (
        f"{settings.name}: {settings.num_trials} trials of {settings.outer_steps} outer steps of "
        f"{settings.config.name}; {settings.algorithm} over {', '.join(settings.space)}; scheduler "
        f"{settings.scheduler.name}; results in {folder}{f', stored in {storage}' if storage else ''}"
    )


def _print_result(result: "SearchOutcome", folder: "SearchDir") -> None:
    from ray_distill.tracking.uri import ui_command
    from ray_distill.tuning.results import terminal_table

    # Off a terminal Rich assumes 80 columns, and would truncate the cells.
    (stdout if stdout.is_terminal else Console(width=WIDE)).print(terminal_table(result.rows))
    print_lines(str(result.time))
    for warning in result.warnings:
        warn(warning)
    results: dict[str, object] = {
        "best config": folder.best,
        "distilled set": folder.artifact,
        "leaderboard": folder.path / "leaderboard.md",
    }
    if folder.storage:
        results["stored in"] = folder.storage
    results["MLflow"] = ui_command(result.tracker.uri)
    print_lines(*fields(results))
