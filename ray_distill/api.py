"""The Python interface: distil, evaluate and search as functions that return results.

    import ray_distill as rd

    run = rd.distill("experiments/digits_ipc1.yaml", out="runs/digits")
    images, labels = run.dataset.images_NCHW, run.dataset.labels_NK
    evaluation = rd.evaluate(run.dataset, networks=["convnet2", "mlp2"], seeds=4)
    evaluation.to_pandas()

The command line is built of the same parts (`pipeline`, `evaluation.run`, `tuning.run`). These functions raise `UserError` for what the caller can fix and `RunError` for what failed on
the way; they install no signal handlers. A Ray cluster that is connected is used; without one, that of RAY_ADDRESS, else one
on this machine is started once and kept for later calls, until the process ends.
"""

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.config.config import Config
from ray_distill.config.load import Overrides, apply_overrides, as_plain, load_config, parse_config
from ray_distill.data.in_memory import store_in_memory
from ray_distill.data.spec import default_root
from ray_distill.distillation.callbacks import Callback
from ray_distill.errors import UserError
from ray_distill.utils.progress import Bar, progress_bar, silent

if TYPE_CHECKING:
    import pandas as pd

    from ray_distill.artifacts.types import Layout, Space
    from ray_distill.evaluation.run import Evaluation
    from ray_distill.pipeline import Outcome
    from ray_distill.storage.run_dir import RunDir
    from ray_distill.tracking.tracker import Tracker
    from ray_distill.tuning.accounting import SearchTime
    from ray_distill.tuning.config import SearchConfig
    from ray_distill.tuning.results import LeaderboardRow


@dataclass(frozen=True, eq=False)
class Run:
    """A finished distillation and its evaluation."""

    folder: Path
    """`distilled.parquet`, its contact sheet, the evaluation's tables and figures, `summary.json`."""
    config: Config
    evaluation: "Evaluation"
    tracker: "Tracker"
    """Its MLflow run: `tracker.uri`, `tracker.run_id`."""
    wall_s: float
    warnings: list[str] = field(default_factory=list)
    """What could not be recorded in MLflow."""

    @cached_property
    def dataset(self) -> DistilledDataset:
        """The distilled dataset that was best on validation."""
        from ray_distill.storage.run_dir import RunDir

        return DistilledDataset.load(RunDir(self.folder).artifact)

    def to_pandas(self) -> "pd.DataFrame":
        """The metrics of the run, a row for each outer step and a column for each metric, from MLflow.

        Raises: TrackingError if the store is away.
        """
        return self.tracker.to_pandas()

    def _repr_html_(self) -> str:
        """For a notebook: the images and the table of the evaluation."""
        return f"{_picture_html(self.dataset)}{self.evaluation._repr_html_()}"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A finished search."""

    folder: Path
    """`best.yaml`, `best.parquet`, the leaderboard and figures."""
    rows: "list[LeaderboardRow]"
    """The trials, the best first."""
    best_config: Config
    """That of the best trial, at the length of the search's base configuration."""
    tracker: "Tracker"
    time: "SearchTime"
    """What its time was spent on, all resumed attempts included."""
    warnings: list[str] = field(default_factory=list)
    """What could not be recorded in MLflow."""
    final: Run | None = None
    """The run with the best configuration, if `finalise` asked for it."""

    @cached_property
    def best_dataset(self) -> DistilledDataset:
        """The distilled dataset of the best trial."""
        from ray_distill.tuning.search_dir import SearchDir

        return DistilledDataset.load(SearchDir(self.folder).artifact)

    def to_pandas(self) -> "pd.DataFrame":
        """The leaderboard: a row for each trial, a column for each searched key."""
        import pandas as pd

        return pd.DataFrame([row.to_dict() for row in self.rows])

    def _repr_html_(self) -> str:
        """For a notebook: the leaderboard."""
        return str(self.to_pandas().to_html(index=False))


def distill(
    config: Config | str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    train: Any = None,
    test: Any = None,
    overrides: Overrides = (),
    resume: bool = False,
    replace: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool | Bar = True,
) -> Run:
    """Distil a dataset, evaluate the result on the test split, and record both.

    Args:
        config: a YAML file, a dict of its sections, or a `Config`.
        out: the folder of the results. Default: `runs/NAME`.
        train: training data in place of `data.source`: a torch Dataset of (image, label), or a pair (images, labels);
            see `data.in_memory`. They are stored in `data.root`, for the workers.
        test: the test split that belongs to `train`.
        overrides: `"outer.lr=0.01"` strings, or a dict {"outer.lr": 0.01}.
        resume: continue the unfinished run in `out` from its last checkpoint.
        replace: delete the run in `out` first.
        callbacks: see `Callback`.
        progress: False for silence; or a function (what, total) that gives a progress bar.

    Raises: UserError (bad configuration or data, a folder in use), RunError.
    """
    from ray_distill.storage.output_folder import open_run_folder

    began = time.monotonic()
    if resume and replace:
        raise UserError(
            "resume and replace: the one continues the run that the other deletes; pass one of them"
        )
    values = apply_overrides(as_plain(config), overrides)
    if train is not None:
        section = dict(values.get("data", {}))
        folder_of_data = Path(section.pop("root", None) or default_root()).expanduser() / "in_memory"
        values["data"] = {**section, "source": store_in_memory(train, test, folder_of_data)}
    elif test is not None:
        raise UserError("test: is the test split of `train`, which is missing")
    checked = parse_config(values)
    bar = _bar(progress)
    folder, uri = open_run_folder(
        checked, None if out is None else Path(out), resume=resume, replace=replace, advice=_ADVICE
    )
    # Only now, since they import Ray and all that a run needs: a mistake is reported before.
    from ray_distill.cluster.connection import ray_while_preparing
    from ray_distill.pipeline import prepare, run_experiment

    for callback in callbacks:
        callback.on_start(checked, folder.path)
    with ray_while_preparing(lambda: prepare(checked, uri, bar), stay_connected=True) as data:
        outcome = run_experiment(
            checked, data, folder, uri, bar, resume=resume, replace=replace, began=began, callbacks=callbacks
        )
    return _run_of(folder, checked, outcome)


_ADVICE = "Continue the run in it (resume=True), delete it (replace=True), or use another `out`."


def _run_of(folder: "RunDir", config: Config, outcome: "Outcome") -> Run:
    return Run(folder.path, config, outcome.evaluation, outcome.tracker, outcome.wall_s, outcome.warnings)


def evaluate(
    sets: DistilledDataset | str | Path | Mapping[str, DistilledDataset | str | Path],
    *,
    networks: Sequence[str] | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    tracking_uri: str | None = None,
    overrides: Overrides = (),
    progress: bool | Bar = True,
    **options: Any,
) -> "Evaluation":
    """Retrain networks on distilled sets and on baselines, and test them: mean, deviation and 95% interval of each.

    Args:
        sets: a `DistilledDataset` or the path of its file, or several by name.
        networks: which networks to train; default: those of the sets' own configuration.
        seeds: how many fresh networks of each.
        out: a folder for the results, which keeps each as it arrives: called again, only what is missing is computed.
        tracking_uri: an MLflow store to record the evaluation in.
        options: other keys of the configuration's section `evaluation`: horizons, baselines, tune_lr, ..

    Raises: UserError, RunError.
    """
    from ray_distill.evaluation.run import evaluate_sets

    if networks is not None:
        options["networks"] = list(networks)
    if seeds is not None:
        options["seeds"] = seeds
    named = sets if isinstance(sets, Mapping) else {_name_of(sets): sets}
    loaded = {
        name: one if isinstance(one, DistilledDataset) else DistilledDataset.load(one)
        for name, one in named.items()
    }
    return evaluate_sets(
        loaded,
        out=out,
        uri=tracking_uri,
        overrides=overrides,
        bar=_bar(progress),
        **options,
    )


def _name_of(one: DistilledDataset | str | Path) -> str:
    return "distilled" if isinstance(one, DistilledDataset) else Path(one).stem


def load_external_set(
    path: str | Path,
    *,
    like: Config | str | Path | Mapping[str, Any],
    space: "Space",
    layout: "Layout | None" = None,
    images: str | None = None,
    labels: str | None = None,
    overrides: Overrides = (),
) -> DistilledDataset:
    """A distilled set that another method saved: .npz, .npy, .pt, .h5, a folder of images, or Parquet. Nothing is unpickled.

    Args:
        like: a configuration that states its source, preprocessing and training protocol.
        space: "whitened" if the values are preprocessed already, "pixels" if not.
        layout: "channels-first" or "channels-last", where the shape leaves it open.
        images, labels: their names in the file, where that leaves it open.

    Raises: UserError for a file that cannot be read, or whose values do not fit what is stated.
    """
    from ray_distill.artifacts.importer import ExternalSpec, load_set

    spec = ExternalSpec(
        config=load_config(like, overrides), space=space, layout=layout, images=images, labels=labels
    )
    return load_set(Path(path), spec)


def search(
    config: "SearchConfig | str | Path | Mapping[str, Any]",
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    resume: bool = False,
    finalise: bool = False,
    progress: bool | Bar = True,
) -> SearchResult:
    """Search for a configuration: many short distillations compared on validation, the bad ones stopped early.

    Args:
        config: a YAML file, a dict of its sections, or a `SearchConfig`.
        out: the folder of the results. Default: `runs/NAME`.
        resume: continue the search in `out`; with more trials in the budget it is extended.
        finalise: distil with the best configuration for all outer steps of the base, and evaluate that on the test split.

    Raises: UserError, RunError.
    """
    from ray_distill.tuning.config import load_search
    from ray_distill.tuning.search_dir import open_search_folder

    began, bar = time.monotonic(), _bar(progress)
    settings = load_search(config, overrides)
    folder, uri = open_search_folder(settings, None if out is None else Path(out), resume=resume)
    # As in `distill`.
    from ray_distill.cluster.connection import ray_while_preparing
    from ray_distill.pipeline import finalise_search, prepare, prepare_development
    from ray_distill.tuning.run import run_search

    get = prepare if finalise else prepare_development
    with ray_while_preparing(lambda: get(settings.config, uri, bar), stay_connected=True) as data:
        done = run_search(settings, data, folder, uri, bar, resume=resume, began=began)
        final = None
        if finalise:
            place, outcome = finalise_search(done, data, folder, uri, bar)
            final = _run_of(place, done.config, outcome)
    return SearchResult(folder.path, done.rows, done.config, done.tracker, done.time, done.warnings, final)


def _bar(progress: bool | Bar) -> Bar:
    if callable(progress):
        return progress
    if not progress:
        return silent
    from rich.console import Console

    console = Console()
    return lambda what, total: progress_bar(console, what, total)


def _picture_html(dataset: DistilledDataset) -> str:
    from ray_distill.distillation.outputs import contact_sheet_of

    png = io.BytesIO()
    contact_sheet_of(dataset).save(png, "PNG")
    encoded = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="distilled images" src="data:image/png;base64,{encoded}">'
