"""The jobs of an evaluation, done here without Ray: what they train on, and what is kept of them."""

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
    baselines_beside,
    best_lr,
    jobs_for,
    lines_of,
)
from ray_distill.evaluation.journal import ResultsLog, claim, identity, save_mlflow_run
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.retraining import LoadedSet, run_job
from ray_distill.evaluation.scheduler import CHOSEN, Choice, JobScheduler
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.jsonl import JsonlError
from tests.helpers.evaluated_sets import at_hand, judged_of
from tests.helpers.tiny import tiny_config

Do = Callable[[Job], Sequence[Record] | Sequence[LrCandidate]]


def silent(done: int, said: str) -> None:
    pass


def follow(course: JobScheduler, do: Do) -> list[Job]:
    """The jobs that a course brings, done one by one."""
    jobs = course.jobs()
    for job in jobs:
        try:
            result = do(job)
        except RuntimeError as e:
            jobs += course.on_failure(job, str(e))
        else:
            jobs += course.on_result(job, result)
    return jobs


def pretend(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
    """Accuracies without training: best at an lr of 0.003, and otherwise the index in thousandths."""
    of = [job.line.retraining(index) for index in job.indices]
    if job.choosing:
        return [LrCandidate(one, job.lr, job.horizons[-1], 0.9 if job.lr == 0.003 else 0.1) for one in of]
    return [Record(one, job.lr, steps, one.index / 1000, 1.0) for one in of for steps in job.horizons]


def config_of(**evaluation: Any) -> Config:
    """The tiny experiment, without what its evaluation says of baselines that are not asked for."""
    idle = {"random_real": ["random_real_draws"], "whole_train": ["whole_train_epochs"]}
    baselines = evaluation.get("baselines", idle)
    dropped = {key: None for name, keys in idle.items() if name not in baselines for key in keys}
    return tiny_config(evaluation=dropped | evaluation)


@pytest.fixture(scope="module")
def mine() -> EvaluationSet:
    return judged_of(config_of(horizons=[3, 6]))


def with_config(judged: EvaluationSet, config: Config, name: str = "mine") -> EvaluationSet:
    return replace(judged, config=config, name=name)


def test_the_lines_of_a_table(mine: EvaluationSet) -> None:
    """Two networks on the set (two each) and on random images (two draws); the own network on all 160 training images,
    one pass in batches of 128: one step. The whole set is trained on in random batches."""
    lines = lines_of([mine])
    assert [(x.subject.name, x.network, x.num_networks, x.horizons, x.batch) for x in lines] == [
        ("mine", "convnet1", 2, (3, 6), None),
        ("mine", "mlp1", 2, (3, 6), None),
        ("random_real", "convnet1", 2, (3, 6), None),
        ("random_real", "mlp1", 2, (3, 6), None),
        ("whole_train", "convnet1", 1, (1,), 128),
    ]
    assert [x.subject.num_images for x in lines] == [10, 10, 10, 10, 160]
    assert len({x.fingerprint for x in lines}) == 5


def test_a_baseline_of_several_sets_stands_there_once(mine: EvaluationSet) -> None:
    """Another set of the same protocol has the same baselines; with another inner training they differ, and their names
    say beside what."""
    same = judged_of(mine.config, "same", scale=2.0)
    assert [x.subject.name for x in lines_of([mine, same])] == [
        *("mine", "mine", "same", "same"),
        *("random_real", "random_real", "whole_train"),
    ]
    other = replace(same, config=tiny_config(evaluation={"horizons": [3, 6]}, inner={"augmentation": []}))
    names = [x.subject.name for x in lines_of([mine, other])]
    assert names[4:] == [
        *(f"random_real beside {name}" for name in ("mine", "mine", "same", "same")),
        *("whole_train beside mine", "whole_train beside same"),
    ]


def test_two_names_for_one_set_are_refused(mine: EvaluationSet) -> None:
    with pytest.raises(ConfigError, match="mine and copy are the same set"):
        lines_of([mine, replace(mine, name="copy")])


CHANGES = {
    "seed": {"seed": 1},
    "precision": {"precision": "float32"},
    "protocol": {"inner": {"augmentation": []}},
    "split": {"data": {"validation_fraction": 0.3}},
    "width": {"network": {"width": 5}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fingerprint_covers_what_determines_the_numbers(mine: EvaluationSet, change: str) -> None:
    """Anything of it changes those of the lines that it concerns: the split only what is trained on real images."""
    config = tiny_config(evaluation={"horizons": [3, 6]}, **CHANGES[change])
    before, after = lines_of([mine]), lines_of([with_config(mine, config)])
    changed = {a.subject.kind for a, b in zip(before, after, strict=True) if a.fingerprint != b.fingerprint}
    real = {"random_real", "whole_train"}
    assert changed == (real if change == "split" else {"distilled", *real})


def test_a_fingerprint_leaves_out_what_does_not(mine: EvaluationSet) -> None:
    """Neither names nor workers, nor how many networks and steps are asked for."""
    config = tiny_config(
        name="other",
        evaluation={"horizons": [9], "seeds": 5},
        cluster={"num_workers": 2},
        compute={"product": "forward"},
    )
    before, after = lines_of([mine]), lines_of([with_config(mine, config, "renamed")])
    assert [x.fingerprint for x in before] == [x.fingerprint for x in after]


def test_the_networks_of_a_job_do_not_depend_on_it(mine: EvaluationSet) -> None:
    """Two networks in one job, and each in one of its own, in float64: the same accuracies to the last digit; more
    horizons do not change those that are there; the seconds add up from horizon to horizon."""
    here = at_hand(mine)
    line = lines_of([mine])[0]
    (both, *_) = jobs_for(line, [0], line.own_lr)
    together = run_job(here, replace(both, indices=(0, 1)))
    alone = [r for i in (1, 0) for r in run_job(here, replace(both, indices=(i,)))]
    keys = [(r.of.index, r.inner_steps, r.test_accuracy) for r in together]
    assert sorted(keys) == sorted((r.of.index, r.inner_steps, r.test_accuracy) for r in alone)
    assert [k[:2] for k in keys] == [(0, 3), (0, 6), (1, 3), (1, 6)]
    short = run_job(here, replace(both, line=replace(line, horizons=(3,))))
    assert short[0].test_accuracy == together[0].test_accuracy
    assert all(a.seconds < b.seconds for a, b in zip(together[::2], together[1::2], strict=True))


def test_random_images_are_drawn_anew_for_each_index(mine: EvaluationSet) -> None:
    """Balanced, from the training images; other images for another index, and for another seed."""
    here = at_hand(mine)
    line = next(x for x in lines_of([mine]) if x.subject.kind == "random_real")
    draws = [here.training_set(line, i, seed) for i, seed in ((0, 0), (1, 0), (0, 9))]
    for draw in draws:
        assert isinstance(draw, DistilledData)
        assert torch.equal(draw.labels_NK, torch.eye(10, dtype=torch.float64))
    assert len({tuple(draw.images_NCHW.flatten().tolist()) for draw in draws}) == 3
    again = here.training_set(line, 1, 0)
    assert isinstance(again, DistilledData)
    assert torch.equal(again.images_NCHW, draws[1].images_NCHW)


def test_the_lr_of_a_job_is_the_one_that_is_trained_with(mine: EvaluationSet) -> None:
    """An lr of 1e-9 leaves the fresh network as it was: the same accuracy at every horizon; the own lr does not."""
    here, line = at_hand(mine), lines_of([mine])[0]
    line = replace(line, horizons=(1, 60))
    (still,), (moving,) = jobs_for(line, [0], 1e-9), jobs_for(line, [0], 1e-2)
    first, last = run_job(here, still)
    assert first.lr == 1e-9
    assert first.test_accuracy == last.test_accuracy
    first, last = run_job(here, moving)
    assert first.test_accuracy != last.test_accuracy


def test_an_lr_is_chosen_without_the_test_split(mine: EvaluationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a test split that raises when it is opened, every job that chooses succeeds, and none other does."""
    monkeypatch.setattr(
        "ray_distill.evaluation.retraining.open_handle", lambda *_: pytest.fail("the test split was opened")
    )
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[0.1, 1, 10], lr_networks=1)
    judged = with_config(mine, config)
    here = at_hand(judged)
    journal = ResultsLog()
    course = JobScheduler(lines_of([judged]), journal, silent)
    jobs = course.jobs()
    assert {job.choosing for job in jobs} == {True}
    assert len(jobs) == 5 * 3
    table = [new for job in jobs for new in course.on_result(job, run_job(here, job))]
    assert len(course.lrs) == 5
    with pytest.raises(pytest.fail.Exception, match="the test split was opened"):
        run_job(here, table[0])


def test_the_lr_is_chosen_line_by_line(mine: EvaluationSet) -> None:
    """The grid is 0.0003, 0.001, 0.003 and the best one 0.003, as `pretend` has it: all networks of the table are trained
    with that, after all that choose; those of the table are other networks than those that chose."""
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[0.3, 1, 3])
    lines = lines_of([with_config(mine, config)])
    assert lines[0].grid == (0.0003, 0.001, 0.003)
    course = JobScheduler(lines, ResultsLog(), silent)
    jobs = follow(course, pretend)
    assert {job.lr for job in jobs if not job.choosing} == {0.003}
    assert sum(len(job.indices) for job in jobs if job.choosing) == 5 * 3 * 2
    assert len(course.records()) == 4 * 2 * 2 + 1
    assert all(record.lr == 0.003 for record in course.records())


def test_networks_that_choose_are_none_of_the_table(
    mine: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds of their own: the streams of two purposes differ in name. So do the random images."""
    seeds, drawn = [], []

    def note(problem: object, data: DistilledData, *_: object, seed: int, **__: object) -> list[list[Score]]:
        seeds.append(seed)
        drawn.append(data.images_NCHW)
        return [[Score(0.5, 1.0)] * 2]

    monkeypatch.setattr("ray_distill.evaluation.retraining.retrain_group", note)
    monkeypatch.setattr("ray_distill.evaluation.retraining._Clock.seconds", lambda *_: [1.0, 2.0])
    here = at_hand(mine)
    line = next(x for x in lines_of([mine]) if x.subject.kind == "random_real")
    for choosing in (False, True):
        run_job(here, jobs_for(line, [0], 1.0, choosing=choosing)[0])
    assert seeds == [Stream(seed=0, name=name).key()[0] for name in ("evaluation", "evaluation-lr")]
    assert not torch.equal(*drawn)


def test_the_best_lr() -> None:
    """The best mean; among equals the nearest to the own one by ratio, then the smaller."""
    assert best_lr(1.0, {0.1: [0.5, 0.7], 1.0: [0.6, 0.4], 10.0: [0.9, 0.2]}) == 0.1
    assert best_lr(1.0, {0.1: [0.5], 0.5: [0.5], 3.0: [0.5]}) == 0.5
    assert best_lr(1.0, {0.5: [0.5], 2.0: [0.5]}) == 0.5


def test_what_fails_is_a_reason_and_the_rest_goes_on(mine: EvaluationSet) -> None:
    """mlp1 on the set fails, and with it every lr of random images: two failures each, and all else in the table."""
    config = config_of(horizons=[3], tune_lr=True, lr_grid=[1, 3], baselines=["random_real"])
    lines = lines_of([with_config(mine, config)])

    def do(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
        what = (job.line.subject.kind, job.line.network, job.choosing)
        if what in {("distilled", "mlp1", False), ("random_real", "mlp1", True)}:
            raise RuntimeError("boom")
        return pretend(job)

    course = JobScheduler(lines, ResultsLog(), silent)
    follow(course, do)
    assert sorted((f.of.subject, f.of.network, f.of.index, f.reason) for f in course.failures) == [
        ("mine", "mlp1", 0, "boom"),
        ("mine", "mlp1", 1, "boom"),
        ("random_real", "mlp1", 0, "no lr could be chosen: boom"),
        ("random_real", "mlp1", 1, "no lr could be chosen: boom"),
    ]
    assert {(r.of.subject, r.of.network) for r in course.records()} == {
        ("mine", "convnet1"),
        ("random_real", "convnet1"),
    }


class KilledError(Exception):
    pass


def test_a_second_start_does_only_what_is_missing(mine: EvaluationSet, tmp_path: Path) -> None:
    """Killed after each number of jobs, in the middle of writing a line: the jobs of both starts are those of one, and
    the records the same; a third start has nothing to do."""
    config = config_of(horizons=[3, 6], tune_lr=True, lr_grid=[1, 3], lr_networks=1, seeds=3)
    lines = lines_of([with_config(mine, config)])
    whole = JobScheduler(lines, ResultsLog(), silent)
    every = follow(whole, pretend)
    for number in range(0, len(every), 5):
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
            follow(JobScheduler(lines, ResultsLog(path), silent), do)
        if path.exists():
            path.write_bytes(path.read_bytes() + b'{"line": "half')
        counts: list[int] = []
        course = JobScheduler(lines, ResultsLog(path), lambda n, said, counts=counts: counts.append(n))
        again = follow(course, pretend)
        assert len(again) == len(every) - number
        assert set(again).isdisjoint(done)
        assert counts[-1] == sum(line.num_trainings for line in lines)
        key = Record.__repr__
        assert sorted(course.records(), key=key) == sorted(whole.records(), key=key)
        assert follow(JobScheduler(lines, ResultsLog(path), silent), pretend) == []
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_more_networks_seeds_and_horizons_add_to_what_is_there(mine: EvaluationSet, tmp_path: Path) -> None:
    """Two seeds of mlp1 after 3 steps; then three of convnet1 after 3 and 6: all of them in the table, and nothing that
    was done is done again."""
    path = tmp_path / "records.jsonl"
    small = config_of(horizons=[3], networks=["mlp1"], baselines=[])
    large = config_of(horizons=[3, 6], networks=["convnet1"], seeds=3, baselines=[])
    follow(JobScheduler(lines_of([with_config(mine, small)]), ResultsLog(path), silent), pretend)
    lines = lines_of([with_config(mine, large)])
    course = JobScheduler(lines, ResultsLog(path), silent)
    assert [i for job in follow(course, pretend) for i in job.indices] == [0, 1, 2]
    assert len(course.records()) == 2 + 3 * 2
    lines = lines_of(
        [with_config(mine, config_of(horizons=[3, 6], networks=["convnet1"], seeds=4, baselines=[]))]
    )
    assert [job.indices for job in JobScheduler(lines, ResultsLog(path), silent).jobs()] == [(3,)]


def test_what_was_found_out_otherwise_does_not_stand_beside_it(mine: EvaluationSet, tmp_path: Path) -> None:
    """Random images of another split: the same line of the table, with other numbers, which replace the first."""
    path = tmp_path / "records.jsonl"
    follow(JobScheduler(lines_of([mine]), ResultsLog(path), silent), pretend)
    other = with_config(mine, tiny_config(evaluation={"horizons": [3, 6]}, data={"validation_fraction": 0.3}))
    course = JobScheduler(lines_of([other]), ResultsLog(path), silent)
    jobs = follow(course, pretend)
    assert {job.line.subject.kind for job in jobs} == {"random_real", "whole_train"}
    assert len(course.records()) == 8 * 2 + 1


def test_a_damaged_journal_is_refused(mine: EvaluationSet, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    follow(JobScheduler(lines_of([mine]), ResultsLog(path), silent), pretend)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-5], *lines[3:]]) + "\n")
    with pytest.raises(JsonlError, match="line 3: not a record"):
        ResultsLog(path)


def test_a_folder_of_something_else_is_refused_and_left_alone(mine: EvaluationSet, tmp_path: Path) -> None:
    """Another set, another way to choose the lr; or no evaluation at all."""
    folder = tmp_path / "results"
    of = identity([mine])
    assert claim(folder, of) == {}
    save_mlflow_run(folder, of, {"uri": "sqlite:///there", "run_id": "abc"})
    assert claim(folder, identity([mine])) == {"uri": "sqlite:///there", "run_id": "abc"}
    more = with_config(mine, config_of(horizons=[3, 6, 9], seeds=9, networks=["mlp2"]))
    assert claim(folder, identity([more]))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    tuned = with_config(mine, config_of(horizons=[3, 6], tune_lr=True))
    for sets, says in (
        ([replace(mine, name="other")], "sets"),
        ([judged_of(mine.config, scale=2.0)], "sets"),
        ([tuned], "choice of lr"),
    ):
        with pytest.raises(ConfigError, match=f"holds another evaluation, with other {says}"):
            claim(folder, identity(sets))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        claim(tmp_path / "mine", of)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_every_kind_of_subject_and_treatment(mine: EvaluationSet) -> None:
    """Two images per class: the set, a subset of one of each, random, chosen and whole real data, in every treatment that
    the robustness scores need; each line's network is trained, on as many images as it says."""
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
    judged = judged_of(config)
    here = at_hand(judged)
    lines = lines_of([judged])
    assert [(x.subject.kind, x.treatment, x.subject.num_images) for x in lines] == [
        *(("distilled", how, 20) for how in ("own", "no_augmentation", "augmentation")),
        ("subset", "own", 10),
        *(("random_real", how, 20) for how in ("own", "no_augmentation", "augmentation")),
        ("herding", "own", 20),
        ("k_means", "own", 20),
        ("whole_train", "own", 160),
    ]
    assert lines[3].num_networks == 1
    seen = {}
    for line in lines:
        kind = line.subject.kind
        chosen = here.taken(here.choose(Choice(kind, 2, "mine"))) if kind in CHOSEN else None
        data = here.training_set(line, 0, 0, chosen)
        assert data.num_images == line.subject.num_images
        seen[line] = data.rows(torch.arange(10)).images_NCHW
        (record,) = run_job(here, jobs_for(line, [0], line.own_lr)[0], chosen)
        assert isinstance(record, Record)
        assert record.of == line.retraining(0)
    real = [x for x in lines if x.treatment == "own" and x.subject.kind != "distilled"]
    assert len({tuple(seen[line].flatten().tolist()) for line in real}) == len(real)
    whole = here.distilled
    (subset,) = (x for x in lines if x.subject.kind == "subset")
    for image, label in zip(*here.training_set(subset, 0, 0).rows(torch.arange(10)), strict=True):
        (row,) = (i for i in range(20) if torch.equal(whole.images_NCHW[i], image))
        assert torch.equal(whole.labels_NK[row], label)


def test_hard_labels_are_the_most_probable_classes(mine: EvaluationSet) -> None:
    """Probabilities 0.6 and 0.4 become 1 and 0; the images stay."""
    labels_NK = 0.6 * torch.eye(10) + 0.4 * torch.eye(10).roll(1, dims=1)
    soft = replace(mine, dataset=replace(mine.dataset, labels_NK=labels_NK))
    here, line = at_hand(soft), lines_of([soft])[0]
    data = here.training_set(replace(line, treatment="hard_labels"), 0, 0)
    assert isinstance(data, DistilledData)
    assert torch.equal(data.labels_NK, torch.eye(10, dtype=torch.float64))
    assert torch.equal(data.images_NCHW, here.distilled.images_NCHW)


def test_a_treatment_that_is_the_own_one_is_none(mine: EvaluationSet) -> None:
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
        for judged, labels in ((mine, set()), (soft, {"hard_labels"})):
            lines = lines_of([with_config(judged, config)])
            of = {
                kind: {x.treatment for x in lines if x.subject.kind == kind}
                for kind in ("distilled", "random_real")
            }
            assert of == {"distilled": {"own", *has, *labels}, "random_real": {"own", *has}}


def test_the_baselines_beside_a_set_have_the_names_of_the_table(mine: EvaluationSet) -> None:
    same, other = judged_of(mine.config, "same", scale=2.0), judged_of(mine.config, "other", scale=3.0)
    other = replace(other, config=tiny_config(evaluation={"horizons": [3, 6]}, inner={"augmentation": []}))
    sets = [mine, same, other]
    beside = baselines_beside(sets, lines_of(sets))
    assert beside["mine"] == beside["same"]
    assert beside["mine"] == {
        "random_real": "random_real beside mine",
        "whole_train": "whole_train beside mine",
    }
    assert beside["other"]["random_real"] == "random_real beside other"


def test_networks_that_are_trained_at_once_stay_so_after_a_new_start(mine: EvaluationSet) -> None:
    """Eight small networks in two groups; of the second one two are missing: they are a job, not part of another."""
    config = config_of(horizons=[3], seeds=8, tune_lr=True, lr_networks=3)
    line, *_ = lines_of([with_config(mine, config)])
    assert [job.indices for job in jobs_for(line, range(8), 1.0)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [job.indices for job in jobs_for(line, [6, 3, 5], 1.0)] == [(3,), (5, 6)]
    assert [job.indices for job in jobs_for(line, range(3), 1.0, choosing=True)] == [(0, 1, 2)]
    drawn = next(x for x in lines_of([with_config(mine, config)]) if x.subject.kind == "random_real")
    assert [job.indices for job in jobs_for(drawn, range(2), 1.0)] == [(0,), (1,)]


def test_a_subset_is_smaller_than_its_set(mine: EvaluationSet) -> None:
    """Also one that has fewer images than its configuration says, as others' sets may."""
    config = tiny_config(distilled={"ipc": 2}, evaluation={"horizons": [3], "subsets": [1]})
    with pytest.raises(
        ConfigError, match=r"evaluation.subsets: must be below 1, the images per class of mine \(found 1\)"
    ):
        lines_of([with_config(mine, config)])


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
    here: LoadedSet = at_hand(with_config(mine, config))
    here.__dict__ |= {"test": real, "distilled": DistilledData(images[:10], torch.eye(10))}
    line = replace(lines_of([mine])[0], network=name, horizons=(2,))
    (record,) = run_job(here, jobs_for(line, [0], 1e-3)[0])
    assert isinstance(record, Record)
    assert (record.of.network, record.inner_steps) == (name, 2)
    assert 0.0 <= record.test_accuracy <= 1.0
