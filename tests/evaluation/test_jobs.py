"""The jobs of an evaluation, run without Ray: what they train on, which are next, and how their results are saved."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_distill.config.config import Config, ConfigError
from ray_distill.core.distilled import DistilledData
from ray_distill.core.retrain import Score
from ray_distill.core.rng import Stream
from ray_distill.data.real_data import RealData
from ray_distill.evaluation.jobs import (
    DD_RANKING,
    Job,
    LrCandidate,
    baseline_names,
    best_lr,
    jobs_for,
    specs_for,
)
from ray_distill.evaluation.journal import ResultsLog, identity, open_folder, save_mlflow_run
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.retraining import EvaluationData, run_job
from ray_distill.evaluation.scheduler import CORESETS, JobScheduler
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.jsonl import JsonlError
from tests.helpers.evaluated_sets import evaluation_set_of, open_here
from tests.helpers.tiny import tiny_config

Do = Callable[[Job], Sequence[Record] | Sequence[LrCandidate]]


def silent(done: int, message: str) -> None:
    pass


def follow(scheduler: JobScheduler, do: Do) -> list[Job]:
    """All jobs of a scheduler, run one by one."""
    jobs = scheduler.jobs()
    for job in jobs:
        try:
            result = do(job)
        except RuntimeError as e:
            jobs += scheduler.on_failure(job, str(e))
        else:
            jobs += scheduler.on_result(job, result)
    return jobs


def pretend(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
    """Accuracies without training: the best lr is 0.003, and test accuracies are the index in thousandths."""
    retrainings = [job.spec.retraining(index) for index in job.indices]
    if job.tunes_lr:
        return [
            LrCandidate(r, job.lr, job.horizons[-1], 0.9 if job.lr == 0.003 else 0.1) for r in retrainings
        ]
    return [Record(r, job.lr, steps, r.index / 1000, 1.0) for r in retrainings for steps in job.horizons]


def config_of(**evaluation: Any) -> Config:
    """The tiny experiment, without the options of baselines that are not asked for."""
    idle = {"random_real": ["random_real_draws"], "whole_train": ["whole_train_epochs"]}
    baselines = evaluation.get("baselines", idle)
    dropped = {key: None for name, keys in idle.items() if name not in baselines for key in keys}
    return tiny_config(evaluation=dropped | evaluation)


@pytest.fixture(scope="module")
def mine() -> EvaluationSet:
    return evaluation_set_of(config_of(horizons=[3, 6]))


def with_config(each: EvaluationSet, config: Config, name: str = "mine") -> EvaluationSet:
    return replace(each, config=config, name=name)


def test_the_rows_of_a_table(mine: EvaluationSet) -> None:
    """Two networks on the set (two each) and on random images (two draws); the own network on all 160 training images,
    one pass in batches of 128: one step. The whole set is trained on in random batches."""
    specs = specs_for([mine])
    assert [(x.subject.name, x.network, x.num_networks, x.horizons, x.batch_size) for x in specs] == [
        ("mine", "convnet1", 2, (3, 6), None),
        ("mine", "mlp1", 2, (3, 6), None),
        ("random_real", "convnet1", 2, (3, 6), None),
        ("random_real", "mlp1", 2, (3, 6), None),
        ("whole_train", "convnet1", 1, (1,), 128),
    ]
    assert [x.subject.num_images for x in specs] == [10, 10, 10, 10, 160]
    assert len({x.fingerprint for x in specs}) == 5


def test_a_baseline_shared_by_several_sets_is_one_row(mine: EvaluationSet) -> None:
    """Sets with the same protocol share their baselines; with another inner training the baselines differ, and their
    names include the set."""
    same = evaluation_set_of(mine.config, "same", scale=2.0)
    assert [x.subject.name for x in specs_for([mine, same])] == [
        *("mine", "mine", "same", "same"),
        *("random_real", "random_real", "whole_train"),
    ]
    other = replace(same, config=tiny_config(evaluation={"horizons": [3, 6]}, inner={"augmentation": []}))
    names = [x.subject.name for x in specs_for([mine, other])]
    assert names[4:] == [
        *(f"random_real beside {name}" for name in ("mine", "mine", "same", "same")),
        *("whole_train beside mine", "whole_train beside same"),
    ]


def test_two_names_for_one_set_are_refused(mine: EvaluationSet) -> None:
    with pytest.raises(ConfigError, match="mine and copy are the same set"):
        specs_for([mine, replace(mine, name="copy")])


CHANGES = {
    "seed": {"seed": 1},
    "precision": {"precision": "float32"},
    "protocol": {"inner": {"augmentation": []}},
    "split": {"data": {"validation_fraction": 0.3}},
    "width": {"network": {"width": 5}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_covers_what_determines_the_numbers(mine: EvaluationSet, change: str) -> None:
    """Each change affects the rows that it concerns: the split only those on real images."""
    config = tiny_config(evaluation={"horizons": [3, 6]}, **CHANGES[change])
    before, after = specs_for([mine]), specs_for([with_config(mine, config)])
    changed = {a.subject.kind for a, b in zip(before, after, strict=True) if a.fingerprint != b.fingerprint}
    real = {"random_real", "whole_train"}
    assert changed == (real if change == "split" else {"distilled", *real})


def test_a_fingerprint_leaves_out_what_does_not(mine: EvaluationSet) -> None:
    """Names, workers, and the numbers of networks and steps."""
    config = tiny_config(
        name="other",
        evaluation={"horizons": [9], "seeds": 5},
        cluster={"num_workers": 2},
        compute={"product": "forward"},
    )
    before, after = specs_for([mine]), specs_for([with_config(mine, config, "renamed")])
    assert [x.fingerprint for x in before] == [x.fingerprint for x in after]


def test_the_networks_of_a_job_do_not_depend_on_it(mine: EvaluationSet) -> None:
    """Two networks in one job, and each in its own, in float64: accuracies are equal to the last digit; more horizons
    change nothing at the others; the seconds add up from horizon to horizon."""
    data = open_here(mine)
    spec = specs_for([mine])[0]
    (both, *_) = jobs_for(spec, [0], spec.protocol_lr)
    together = run_job(data, replace(both, indices=(0, 1)))
    alone = [r for i in (1, 0) for r in run_job(data, replace(both, indices=(i,)))]
    keys = [(r.retraining.index, r.inner_steps, r.test_accuracy) for r in together]
    assert sorted(keys) == sorted((r.retraining.index, r.inner_steps, r.test_accuracy) for r in alone)
    assert [k[:2] for k in keys] == [(0, 3), (0, 6), (1, 3), (1, 6)]
    short = run_job(data, replace(both, spec=replace(spec, horizons=(3,))))
    assert short[0].test_accuracy == together[0].test_accuracy
    assert all(a.seconds < b.seconds for a, b in zip(together[::2], together[1::2], strict=True))


def test_random_images_differ_between_indices(mine: EvaluationSet) -> None:
    """Class-balanced training images; others for another index, and for another seed."""
    data = open_here(mine)
    spec = next(x for x in specs_for([mine]) if x.subject.kind == "random_real")
    draws = [data.training_set(spec, i, seed) for i, seed in ((0, 0), (1, 0), (0, 9))]
    for draw in draws:
        assert isinstance(draw, DistilledData)
        assert torch.equal(draw.labels_NK, torch.eye(10, dtype=torch.float64))
    assert len({tuple(draw.images_NCHW.flatten().tolist()) for draw in draws}) == 3
    again = data.training_set(spec, 1, 0)
    assert isinstance(again, DistilledData)
    assert torch.equal(again.images_NCHW, draws[1].images_NCHW)


def test_networks_are_trained_with_the_lr_of_the_job(mine: EvaluationSet) -> None:
    """An lr of 1e-9 leaves the network as it was: the same accuracy at every horizon; with 1e-2 it changes."""
    data, spec = open_here(mine), specs_for([mine])[0]
    spec = replace(spec, horizons=(1, 60))
    (still,), (moving,) = jobs_for(spec, [0], 1e-9), jobs_for(spec, [0], 1e-2)
    first, last = run_job(data, still)
    assert first.lr == 1e-9
    assert first.test_accuracy == last.test_accuracy
    first, last = run_job(data, moving)
    assert first.test_accuracy != last.test_accuracy


def test_the_lr_is_tuned_without_the_test_split(mine: EvaluationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a test split that raises when it is opened, every job that tunes the lr succeeds, and no other."""
    monkeypatch.setattr(
        "ray_distill.evaluation.retraining.open_handle", lambda *_: pytest.fail("the test split was opened")
    )
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[0.1, 1, 10], lr_networks=1)
    each = with_config(mine, config)
    data = open_here(each)
    journal = ResultsLog()
    scheduler = JobScheduler(specs_for([each]), journal, silent)
    jobs = scheduler.jobs()
    assert {job.tunes_lr for job in jobs} == {True}
    assert len(jobs) == 5 * 3
    table = [new for job in jobs for new in scheduler.on_result(job, run_job(data, job))]
    assert len(scheduler.lrs) == 5
    with pytest.raises(pytest.fail.Exception, match="the test split was opened"):
        run_job(data, table[0])


def test_the_lr_is_tuned_for_each_row(mine: EvaluationSet) -> None:
    """The grid is 0.0003, 0.001, 0.003 and the best one 0.003, by `pretend`: all networks of the table are trained with
    that, after those that tune it."""
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[0.3, 1, 3])
    specs = specs_for([with_config(mine, config)])
    assert specs[0].lr_grid == (0.0003, 0.001, 0.003)
    scheduler = JobScheduler(specs, ResultsLog(), silent)
    jobs = follow(scheduler, pretend)
    assert {job.lr for job in jobs if not job.tunes_lr} == {0.003}
    assert sum(len(job.indices) for job in jobs if job.tunes_lr) == 5 * 3 * 2
    assert len(scheduler.records()) == 4 * 2 * 2 + 1
    assert all(record.lr == 0.003 for record in scheduler.records())


def test_networks_that_tune_the_lr_are_not_those_of_the_table(
    mine: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have other seeds, from streams of different names, and other random images."""
    seeds, drawn = [], []

    def record_call(
        problem: object, data: DistilledData, *_: object, seed: int, **__: object
    ) -> list[list[Score]]:
        seeds.append(seed)
        drawn.append(data.images_NCHW)
        return [[Score(0.5, 1.0)] * 2]

    monkeypatch.setattr("ray_distill.evaluation.retraining.retrain_group", record_call)
    monkeypatch.setattr("ray_distill.evaluation.retraining._Clock.seconds", lambda *_: [1.0, 2.0])
    data = open_here(mine)
    spec = next(x for x in specs_for([mine]) if x.subject.kind == "random_real")
    for tunes_lr in (False, True):
        run_job(data, jobs_for(spec, [0], 1.0, tunes_lr=tunes_lr)[0])
    assert seeds == [Stream(seed=0, name=name).key()[0] for name in ("evaluation", "evaluation-lr")]
    assert not torch.equal(*drawn)


def test_the_best_lr() -> None:
    """The best mean; on a tie the nearest to the protocol's by ratio, then the smaller."""
    assert best_lr(1.0, {0.1: [0.5, 0.7], 1.0: [0.6, 0.4], 10.0: [0.9, 0.2]}) == 0.1
    assert best_lr(1.0, {0.1: [0.5], 0.5: [0.5], 3.0: [0.5]}) == 0.5
    assert best_lr(1.0, {0.5: [0.5], 2.0: [0.5]}) == 0.5


def test_failed_jobs_are_failures_with_their_reason(mine: EvaluationSet) -> None:
    """mlp1 fails on the set, and with every lr on random images: two failures each; the rest of the table is complete."""
    config = config_of(horizons=[3], tune_lr=True, lr_grid=[1, 3], baselines=["random_real"])
    specs = specs_for([with_config(mine, config)])

    def do(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
        what = (job.spec.subject.kind, job.spec.network, job.tunes_lr)
        if what in {("distilled", "mlp1", False), ("random_real", "mlp1", True)}:
            raise RuntimeError("boom")
        return pretend(job)

    scheduler = JobScheduler(specs, ResultsLog(), silent)
    follow(scheduler, do)
    assert sorted(
        (f.retraining.subject, f.retraining.network, f.retraining.index, f.reason) for f in scheduler.failures
    ) == [
        ("mine", "mlp1", 0, "boom"),
        ("mine", "mlp1", 1, "boom"),
        ("random_real", "mlp1", 0, "the lr could not be tuned: boom"),
        ("random_real", "mlp1", 1, "the lr could not be tuned: boom"),
    ]
    assert {(r.retraining.subject, r.retraining.network) for r in scheduler.records()} == {
        ("mine", "convnet1"),
        ("random_real", "convnet1"),
    }


class KilledError(Exception):
    pass


def test_a_resumed_evaluation_does_only_what_is_missing(mine: EvaluationSet, tmp_path: Path) -> None:
    """Killed after some number of jobs, in the middle of a line: together both starts run the jobs of one, with the same
    records; a third has nothing to do."""
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[1, 3], lr_networks=1, seeds=3)
    specs = specs_for([with_config(mine, config)])
    complete = JobScheduler(specs, ResultsLog(), silent)
    all_jobs = follow(complete, pretend)
    for number in range(0, len(all_jobs), 5):
        path = tmp_path / f"{number}.jsonl"
        done: list[Job] = []

        def do(
            job: Job, done: list[Job] = done, number: int = number
        ) -> Sequence[Record] | Sequence[LrCandidate]:
            if len(done) == number:
                raise KilledError
            done.append(job)
            return pretend(job)

        with pytest.raises(KilledError):
            follow(JobScheduler(specs, ResultsLog(path), silent), do)
        if path.exists():
            path.write_bytes(path.read_bytes() + b'{"line": "half')
        counts: list[int] = []
        scheduler = JobScheduler(specs, ResultsLog(path), lambda n, message, counts=counts: counts.append(n))
        again = follow(scheduler, pretend)
        assert len(again) == len(all_jobs) - number
        assert set(again).isdisjoint(done)
        assert counts[-1] == sum(spec.num_trainings for spec in specs)
        key = Record.__repr__
        assert sorted(scheduler.records(), key=key) == sorted(complete.records(), key=key)
        assert follow(JobScheduler(specs, ResultsLog(path), silent), pretend) == []
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_more_networks_seeds_and_horizons_add_to_a_folder(mine: EvaluationSet, tmp_path: Path) -> None:
    """Two seeds of mlp1 after 3 steps; then three of convnet1 after 3 and 6: all are in the table, and none is computed
    twice."""
    path = tmp_path / "records.jsonl"
    small = config_of(horizons=[3], networks=["mlp1"], baselines=[])
    large = config_of(horizons=[3, 6], networks=["convnet1"], seeds=3, baselines=[])
    follow(JobScheduler(specs_for([with_config(mine, small)]), ResultsLog(path), silent), pretend)
    specs = specs_for([with_config(mine, large)])
    scheduler = JobScheduler(specs, ResultsLog(path), silent)
    assert [i for job in follow(scheduler, pretend) for i in job.indices] == [0, 1, 2]
    assert len(scheduler.records()) == 2 + 3 * 2
    specs = specs_for(
        [with_config(mine, config_of(horizons=[3, 6], networks=["convnet1"], seeds=4, baselines=[]))]
    )
    assert [job.indices for job in JobScheduler(specs, ResultsLog(path), silent).jobs()] == [(3,)]


def test_a_row_is_replaced_when_its_data_changes(mine: EvaluationSet, tmp_path: Path) -> None:
    """Random images of another split are the same row of the table: the new numbers replace the first."""
    path = tmp_path / "records.jsonl"
    follow(JobScheduler(specs_for([mine]), ResultsLog(path), silent), pretend)
    other = with_config(mine, tiny_config(evaluation={"horizons": [3, 6]}, data={"validation_fraction": 0.3}))
    scheduler = JobScheduler(specs_for([other]), ResultsLog(path), silent)
    jobs = follow(scheduler, pretend)
    assert {job.spec.subject.kind for job in jobs} == {"random_real", "whole_train"}
    assert len(scheduler.records()) == 8 * 2 + 1


def test_a_damaged_file_of_results_is_refused(mine: EvaluationSet, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    follow(JobScheduler(specs_for([mine]), ResultsLog(path), silent), pretend)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-5], *lines[3:]]) + "\n")
    with pytest.raises(JsonlError, match="line 3: not a record"):
        ResultsLog(path)


def test_a_folder_of_another_evaluation_is_refused_and_left_alone(
    mine: EvaluationSet, tmp_path: Path
) -> None:
    """Another set, another way to tune the lr; or other files."""
    folder = tmp_path / "results"
    evaluation = identity([mine])
    assert open_folder(folder, evaluation) == {}
    save_mlflow_run(folder, evaluation, {"uri": "sqlite:///there", "run_id": "abc"})
    assert open_folder(folder, identity([mine])) == {"uri": "sqlite:///there", "run_id": "abc"}
    more = with_config(mine, config_of(horizons=[3, 6, 9], seeds=9, networks=["mlp2"]))
    assert open_folder(folder, identity([more]))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    tuned = with_config(mine, config_of(horizons=[3, 6], tune_lr=True))
    for sets, different in (
        ([replace(mine, name="other")], "sets"),
        ([evaluation_set_of(mine.config, scale=2.0)], "sets"),
        ([tuned], "choice of lr"),
    ):
        with pytest.raises(ConfigError, match=f"has another evaluation, with different {different}"):
            open_folder(folder, identity(sets))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not an evaluation"):
        open_folder(tmp_path / "mine", evaluation)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_every_kind_of_subject_and_treatment(mine: EvaluationSet) -> None:
    """Two images per class: the set, a subset of one of each, random, selected and all real images, in every treatment of
    the robustness scores: each row is trained, on its number of images."""
    config = tiny_config(
        distilled={"ipc": 2},
        evaluation={
            "horizons": [2],
            "networks": ["mlp1"],
            "baselines": ["random_real", "herding", "k_means", "whole_train"],
            "robustness": True,
            "subsets": [1],
            "subset_draws": 1,
        },
    )
    each = evaluation_set_of(config)
    data = open_here(each)
    specs = specs_for([each])
    assert [(x.subject.kind, x.treatment, x.subject.num_images) for x in specs] == [
        *(("distilled", how, 20) for how in ("own", "no_augmentation", "augmentation")),
        ("subset", "own", 10),
        *(("random_real", how, 20) for how in ("own", "no_augmentation", "augmentation")),
        ("herding", "own", 20),
        ("k_means", "own", 20),
        ("whole_train", "own", 160),
    ]
    assert specs[3].num_networks == 1
    seen = {}
    for spec in specs:
        kind = spec.subject.kind
        coreset = data.to_device(data.select_coreset(kind, 2)) if kind in CORESETS else None
        training_set = data.training_set(spec, 0, 0, coreset)
        assert training_set.num_images == spec.subject.num_images
        seen[spec] = training_set.rows(torch.arange(10)).images_NCHW
        (record,) = run_job(data, jobs_for(spec, [0], spec.protocol_lr)[0], coreset)
        assert isinstance(record, Record)
        assert record.retraining == spec.retraining(0)
    real = [x for x in specs if x.treatment == "own" and x.subject.kind != "distilled"]
    assert len({tuple(seen[spec].flatten().tolist()) for spec in real}) == len(real)
    distilled = data.distilled
    (subset,) = (x for x in specs if x.subject.kind == "subset")
    for image, label in zip(*data.training_set(subset, 0, 0).rows(torch.arange(10)), strict=True):
        (row,) = (i for i in range(20) if torch.equal(distilled.images_NCHW[i], image))
        assert torch.equal(distilled.labels_NK[row], label)


def test_hard_labels_are_the_most_probable_classes(mine: EvaluationSet) -> None:
    """Probabilities 0.6 and 0.4 become 1 and 0; the images stay."""
    labels_NK = 0.6 * torch.eye(10) + 0.4 * torch.eye(10).roll(1, dims=1)
    soft = replace(mine, dataset=replace(mine.dataset, labels_NK=labels_NK))
    data, spec = open_here(soft), specs_for([soft])[0]
    hard = data.training_set(replace(spec, treatment="hard_labels"), 0, 0)
    assert isinstance(hard, DistilledData)
    assert torch.equal(hard.labels_NK, torch.eye(10, dtype=torch.float64))
    assert torch.equal(hard.images_NCHW, data.distilled.images_NCHW)


def test_a_treatment_that_changes_nothing_is_left_out(mine: EvaluationSet) -> None:
    """Learnt labels are also made hard; a protocol without augmentation, or with DD-Ranking's, lacks that treatment."""
    labels_NK = mine.dataset.labels_NK.roll(1, dims=1) + mine.dataset.labels_NK
    soft = replace(mine, dataset=replace(mine.dataset, labels_NK=labels_NK))
    for augmentation, has in (
        ([], {"augmentation"}),
        (["rotate"], {"no_augmentation", "augmentation"}),
        (list(DD_RANKING.operations), {"no_augmentation"}),
    ):
        config = tiny_config(
            inner={"augmentation": augmentation}, evaluation={"networks": ["mlp1"], "robustness": True}
        )
        for each, labels in ((mine, set()), (soft, {"hard_labels"})):
            specs = specs_for([with_config(each, config)])
            treatments = {
                kind: {x.treatment for x in specs if x.subject.kind == kind}
                for kind in ("distilled", "random_real")
            }
            assert treatments == {"distilled": {"own", *has, *labels}, "random_real": {"own", *has}}


def test_baseline_names_are_those_of_the_table(mine: EvaluationSet) -> None:
    same, other = (
        evaluation_set_of(mine.config, "same", scale=2.0),
        evaluation_set_of(mine.config, "other", scale=3.0),
    )
    other = replace(other, config=tiny_config(evaluation={"horizons": [3, 6]}, inner={"augmentation": []}))
    sets = [mine, same, other]
    beside = baseline_names(sets, specs_for(sets))
    assert beside["mine"] == beside["same"]
    assert beside["mine"] == {
        "random_real": "random_real beside mine",
        "whole_train": "whole_train beside mine",
    }
    assert beside["other"]["random_real"] == "random_real beside other"


def test_networks_stay_in_their_groups_in_a_resumed_evaluation(mine: EvaluationSet) -> None:
    """Eight small networks in two groups; those that are missing are jobs of their groups."""
    config = config_of(horizons=[3], seeds=8, tune_lr=True, lr_networks=3)
    spec, *_ = specs_for([with_config(mine, config)])
    assert [job.indices for job in jobs_for(spec, range(8), 1.0)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [job.indices for job in jobs_for(spec, [6, 3, 5], 1.0)] == [(3,), (5, 6)]
    assert [job.indices for job in jobs_for(spec, range(3), 1.0, tunes_lr=True)] == [(0, 1, 2)]
    drawn = next(x for x in specs_for([with_config(mine, config)]) if x.subject.kind == "random_real")
    assert [job.indices for job in jobs_for(drawn, range(2), 1.0)] == [(0,), (1,)]


def test_a_subset_is_smaller_than_its_set(mine: EvaluationSet) -> None:
    """Also if the set has fewer images than its configuration says, as external sets may."""
    config = tiny_config(distilled={"ipc": 2}, evaluation={"horizons": [3], "subsets": [1]})
    with pytest.raises(
        ConfigError, match=r"evaluation.subsets: must be below 1, the images per class of mine \(got 1\)"
    ):
        specs_for([with_config(mine, config)])


@pytest.mark.parametrize("name", ["convnet3", "alexnet", "vgg11", "resnet18", "resnet18-bn"])
def test_the_cross_architecture_table_is_computed(mine: EvaluationSet, name: str) -> None:
    """Each network of the usual table, retrained for two steps on ten 32x32 images and tested on twelve."""
    config = tiny_config(
        precision="float32", network={"width": 8}, evaluation={"networks": [name], "horizons": 2}
    )
    shape, stream = (3, 32, 32), Stream(seed=1, name="table")
    images = stream.normal(22 * 3072, dtype=torch.float32).reshape(22, *shape)
    real = RealData(
        source_NCHW=images[10:],
        rows_N=torch.arange(12),
        labels_N=torch.arange(12) % 10,
        num_classes=10,
        white=1,
        preprocessing=None,
        mapping=None,
    )
    data: EvaluationData = open_here(with_config(mine, config))
    data.__dict__ |= {"test": real, "distilled": DistilledData(images[:10], torch.eye(10))}
    spec = replace(specs_for([mine])[0], network=name, horizons=(2,))
    (record,) = run_job(data, jobs_for(spec, [0], 1e-3)[0])
    assert isinstance(record, Record)
    assert (record.retraining.network, record.inner_steps) == (name, 2)
    assert 0.0 <= record.test_accuracy <= 1.0
