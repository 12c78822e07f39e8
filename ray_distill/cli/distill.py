"""The verbs `distill` and `demo`: a whole run."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_distill.cli.console import STARTED, bar, exit_codes, fields, print_lines, warn
from ray_distill.cli.options import DryRun, Experiment, Out, Resume, Set
from ray_distill.cli.tables import print_evaluation
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import load_config

if TYPE_CHECKING:
    from ray_distill.data.splits import DevelopmentData
    from ray_distill.pipeline import Outcome
    from ray_distill.storage.run_dir import RunDir

HOW_TO_RESUME = "resume with: ray-distill distill CONFIG.yaml --out DIR --resume"


def demo(out: Out = None, set_: Set = None) -> None:
    """Distil handwritten digits to one image per class and evaluate them, in about two minutes on two cores.

    Needs no download: the digits come with scikit-learn. Does what every other run does: Ray Train workers distil, a pool
    of Ray actors evaluates the result and baselines, MLflow records it all.
    """
    with exit_codes(HOW_TO_RESUME):
        _run(demo_config(set_ or []), out, "Use another --out.", unique=True)


def distill(
    config_file: Experiment,
    out: Out = None,
    resume: Resume = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="First delete the run in the folder, with its checkpoints and results."),
    ] = False,
    dry_run: DryRun = False,
    set_: Set = None,
) -> None:
    """Distil a dataset, evaluate the result, and record both.

    The same configuration gives the same numbers, with any number of workers, interrupted and resumed or not.
    """
    with exit_codes(HOW_TO_RESUME):
        if resume and force:
            raise ConfigError("--force: would delete the run that --resume continues; use one of the two")
        config = load_config(config_file, set_ or [])
        if dry_run:
            print(f"{config.to_yaml()}# hash {config.hash}")
            return
        advice = "Use --resume to continue the run in it, --force to delete that run first, or another --out."
        _run(config, out, advice, resume=resume, replace=force)


def demo_config(overrides: list[str]) -> Config:
    """The demo's configuration, with at most one worker per core unless overridden."""
    with as_file(files("ray_distill") / "demo.yaml") as path:
        workers = min(load_config(path).cluster.num_workers, os.cpu_count() or 1)
        return load_config(path, [f"cluster.num_workers={workers}", *overrides])


def _run(
    config: Config,
    out: Path | None,
    advice: str,
    *,
    resume: bool = False,
    replace: bool = False,
    unique: bool = False,
) -> None:
    from ray_distill.storage.output_folder import local_store_warning, open_run_folder

    folder, uri = open_run_folder(config, out, resume=resume, replace=replace, unique=unique, advice=advice)
    print_lines(describe(config, folder.path))
    if note := local_store_warning(folder.storage, uri, "run"):
        warn(note, "note")

    def prepare() -> "DevelopmentData":
        from ray_distill.pipeline import prepare

        return prepare(config, uri, bar)

    from ray_distill.cluster.connection import ray_while_preparing

    with ray_while_preparing(prepare) as data:
        from ray_distill.pipeline import run_experiment

        outcome = run_experiment(
            config, data, folder, uri, bar, resume=resume, replace=replace, began=STARTED
        )
        _print_outcome(outcome, folder)


def describe(config: Config, folder: Path) -> str:
    """A run in one line."""
    truncation, cluster = config.truncation, config.cluster
    window = getattr(truncation, "window_length", None)
    parts = [
        f"{config.name}: {config.data.source} to {config.distilled.ipc} image(s) per class",
        " with learnt labels" if config.distilled.learn_labels else "",
        f" through {config.network.name}",
        f", width {config.network.width}" if config.network.width else "",
        f"; {truncation.rule}",
        f", window {window}" if window else "",
        f", unroll {truncation.unroll_length}; {config.outer.steps} outer steps x {config.replicas} replica(s) on ",
        f"{cluster.min_workers} to " if cluster.min_workers else "",
        f"{cluster.num_workers} worker(s); results in {folder}",
        f", stored in {cluster.storage}" if cluster.storage else "",
    ]
    return "".join(parts)


def _print_outcome(outcome: "Outcome", folder: "RunDir") -> None:
    from ray_distill.tracking.uri import ui_command

    print_evaluation(outcome.evaluation)
    for warning in outcome.warnings:
        warn(warning)
    results: dict[str, object] = {
        "distilled set": folder.artifact,
        "contact sheet": folder.contact_sheet,
        "evaluation": folder.evaluation,
        "summary": folder.summary,
    }
    if folder.storage:
        results["stored in"] = folder.storage
    results["MLflow"] = ui_command(outcome.tracker.uri)
    print_lines(f"finished in {outcome.wall_s:.0f} s", *fields(results))
