"""Files from strangers: a thousand of them, made from good ones by a drawn mutation.

Each reader gives an error of ours or what is valid of its kind, and allocates no more than its file warrants. Half of the
mutations are of bytes; the other half are of what the file says, written again whole with digests that fit, so that what a
reader checks after the digest is what is tested. The seed is printed with a failure; RAY_DISTILL_FUZZ_SEED sets another.
"""

import copy
import json
import os
import random
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_distill.artifacts import parquet
from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.config.config import Config
from ray_distill.config.load import load_config
from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.schedules import Constant
from ray_distill.core.state import Best, RunState
from ray_distill.data.arrow_file import ArrowImageWriter, open_images
from ray_distill.data.labelled_images import LabelledImages
from ray_distill.data.preprocessing import (
    Preprocessing,
    fit_preprocessing,
    load_preprocessing,
    save_preprocessing,
)
from ray_distill.distillation import checkpoint
from ray_distill.distillation.checkpoint import SavedRun, load_state, save_state
from ray_distill.errors import RunError, UserError
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker

SEED = int(os.environ.get("RAY_DISTILL_FUZZ_SEED", "0"))
DIGITS = Path(__file__).parents[1] / "experiments" / "digits_ipc1.yaml"
FILE_BYTES = 100_000
"""No good file is larger."""
MOST_BYTES = 32 * 2**20
"""That a reader may allocate for one, in Python, NumPy or Arrow."""
ROOM_BYTES = 4 * 2**30
"""That it could allocate at all: beyond it, an attempt fails, and is seen."""

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30)),
    *(0.5, -1.5, 1e308, float("nan"), float("inf"), "", "x", "1", "\x1b[2J", "a" * 10_000),
    *([], {}, [[]], [None], [1, 2, 3], [10**6] * 3, [2**31] * 4, {"x": 1}, [-1, -1]),
)


class Kind(NamedTuple):
    """A kind of file."""

    write: Callable[[Path], None]
    """A good one."""
    read: Callable[[Path], Any]
    valid: Callable[[Any], bool]
    """Of what was read."""
    forge: Callable[[random.Random, Path, Path], None]
    """(draw, good file, target): the good one with something else said in it, and its digests right."""


def elsewhere(draw: random.Random, value: Any) -> Any:
    """Plain data with one value in it replaced, removed, renamed or said twice; at any depth."""
    value = copy.deepcopy(value)
    holders = [value]
    for holder in holders:
        inside = holder.values() if isinstance(holder, dict) else holder
        holders += [x for x in inside if isinstance(x, dict | list) and x]
    holder = draw.choice(holders)
    key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match draw.randrange(5 if isinstance(holder, dict) else 6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        case 5:
            holder.insert(key, draw.choice([*EXTREMES, holder[key]]))
        case _:
            holder[key] = draw.choice(EXTREMES)
    return value


def bytes_elsewhere(draw: random.Random, content: bytes) -> bytes:
    """The bytes with bits flipped, cut, something inserted or removed, or a number in them made extreme."""
    place = draw.randrange(len(content))
    match draw.randrange(5):
        case 0:
            changed = bytearray(content)
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            return bytes(changed)
        case 1:
            return content[:place]
        case 2:
            return content[:place] + draw.randbytes(draw.randint(1, 64)) + content[place:]
        case 3:
            return content[:place] + content[place + draw.randint(1, 64) :]
    size = draw.choice((4, 8))
    number = draw.choice((0, -1, 1, 2**31 - 1, -(2**31), 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 9)))
    return content[:place] + number.to_bytes(size, "little", signed=True) + content[place + size :]


# The kinds.


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))


def whitening() -> Preprocessing:
    return fit_preprocessing("zca", [images(30, 3, 2, 2)], zca_shrinkage=0.1)


def write_artifact(path: Path) -> None:
    DistilledDataset(
        images_NCHW=images(6, 3, 2, 2) - 0.5,
        labels_NK=images(6, 3),
        class_names=("cat", "dog", "owl"),
        preprocessing=whitening(),
        protocol={"optimizer": {"name": "adam", "lr": 1e-3}, "inner_steps": 60},
        config={"outer": {"lr": 0.3}, "seed": 3},
        config_hash="5f0c",
        provenance={"seed": 3, "outer_step": 100},
    ).save(path)


def is_distilled_set(found: DistilledDataset) -> bool:
    return (
        all(type(name) is str for name in (*found.class_names, found.config_hash))
        and found.images_NCHW.shape[0] == len(found) == len(found.labels_NK)
        and bool(found.to_pixels().isfinite().all())
        and "\x1b" not in found.describe()
    )


def forge_artifact(draw: random.Random, good: Path, target: Path) -> None:
    table = pq.read_table(good)
    header = elsewhere(draw, json.loads(table.schema.metadata[b"ray_distill"]))
    images, labels = (
        table.column(name).combine_chunks().storage.flatten() for name in ("image", "label_probabilities")
    )
    payload = b"".join(table.column("preprocessing_chunk").to_pylist())
    without = {k: v for k, v in header.items() if k != "digest"}
    if "digest" in header and draw.random() < 0.9:
        try:
            header["digest"] = parquet._digest(
                without, [images.to_numpy().tobytes(), labels.to_numpy().tobytes(), payload]
            )
        except ValueError:
            header["digest"] = "0" * 64
    table = table.replace_schema_metadata({"ray_distill": json.dumps(header)})
    pq.write_table(table, target, compression=draw.choice(("none", "zstd")), use_dictionary=False)


def state() -> RunState:
    data = DistilledData(images(4, 1, 3, 3), images(4, 2))
    start = RunState.start(data, OuterOptimizer(lr=Constant(1.0), label_lr_scale=1.0))
    start = start._replace(outer=start.outer._replace(clip_ema=0.5), outer_step=3)
    return start.with_candidate(Best(data, 2, 0.25))


def is_run(found: SavedRun) -> bool:
    run = found.state
    counts = (
        run.outer_step,
        run.clipped_total,
        run.nonfinite_in_a_row,
        run.nonfinite_total,
        run.outer.num_steps,
    )
    tensors = [*run.data, *run.outer.images, *(run.outer.labels or ()), *(run.best.data if run.best else ())]
    shapes = {x.shape for x in tensors}
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tensors)
        and shapes <= {run.data.images_NCHW.shape, run.data.labels_NK.shape}
        and (run.outer.clip_ema is None or type(run.outer.clip_ema) is float)
        and all(isinstance(point, StepMetrics) for point in found.unlogged)
    )


def forge_checkpoint(draw: random.Random, good: Path, target: Path) -> None:
    body = good.read_bytes().split(b"\n", 2)[2]
    table = pa.ipc.open_stream(body).read_all()
    record, rows = json.loads(table.schema.metadata[b"record"]), table.to_pylist()
    if draw.random() < 0.6:
        record = elsewhere(draw, record)
    else:
        row = draw.choice(rows)
        shapes = (
            [],
            [0],
            [-1],
            [10**6] * 3,
            [2**31, 2**31],
            [2**63 - 1],
            row["shape"][::-1],
            [*row["shape"], 1],
        )
        match draw.randrange(3):
            case 0:
                row["shape"] = draw.choice(shapes)
            case 1:
                row["dtype"] = draw.choice(("float64", "int64", "object", ""))
            case _:
                row["name"] = draw.choice((draw.choice(rows)["name"], ""))
    schema = checkpoint._SCHEMA.with_metadata({b"record": json.dumps(record).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    forged = sink.getvalue().to_pybytes()
    if draw.random() < 0.2:
        forged = bytes_elsewhere(draw, forged)
    target.write_bytes(b"\n".join((checkpoint.FORMAT, checkpoint._digest(forged), forged)))


def forge_arrow_file(draw: random.Random, good: Path, target: Path) -> None:
    """Its header changed, or a column dropped, cut, or of another type."""
    table = pa.ipc.open_file(good.read_bytes()).read_all()
    header = json.loads(table.schema.metadata[b"ray_distill"])
    if draw.random() < 0.7:
        header = elsewhere(draw, header)
    else:
        name = draw.choice(table.column_names)
        place = table.schema.get_field_index(name)
        match draw.randrange(3):
            case 0:
                table = table.drop_columns([name])
            case 1:
                column = pa.array([draw.choice((0, 7, -1, 2**40))] * len(table), pa.int64())
                table = table.set_column(place, name, column)
            case _:
                table = table.slice(1)
    table = table.replace_schema_metadata({"ray_distill": json.dumps(header)})
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def is_preprocessing(found: Preprocessing) -> bool:
    pixels = images(2, 3, 2, 2)
    return bool(found.apply(pixels).isfinite().all()) and bool(found.describe())


def write_images(path: Path) -> None:
    spool = ArrowImageWriter(path)
    spool.add(torch.arange(6 * 12, dtype=torch.uint8).view(6, 3, 2, 2).numpy())
    spool.finish(
        torch.tensor([0, 1, 2, 0, 1, 2]), {"class_names": ["a", "b", "c"], "white": 255, "broken": ["x"]}
    )
    spool.close()


def is_images(found: LabelledImages) -> bool:
    pixels = found.pixels(torch.arange(len(found)))
    return (
        pixels.shape == (len(found), *found.image_shape)
        and bool(pixels.isfinite().all())
        and 0 <= int(found.labels_N.min()) <= int(found.labels_N.max()) < found.num_classes
        and all(type(name) is str for name in found.class_names)
    )


def experiment() -> Config:
    return load_config(DIGITS)


def write_identity(path: Path) -> None:
    folder = RunDir(path.with_name("run"))
    folder.claim(experiment(), Tracker("sqlite:////there/mlflow.db", "abc"))
    path.write_bytes(folder.identity.read_bytes())


def read_identity(path: Path) -> Tracker:
    folder = RunDir(path.with_name("run"))
    folder.identity.write_bytes(path.read_bytes())
    return folder.tracker_to_resume(experiment())


def forge_json(draw: random.Random, good: Path, target: Path) -> None:
    target.write_text(json.dumps(elsewhere(draw, json.loads(good.read_text()))))


KINDS = {
    "distilled set": (250, Kind(write_artifact, DistilledDataset.load, is_distilled_set, forge_artifact)),
    "checkpoint": (
        300,
        Kind(
            lambda path: save_state(path, "abc", state(), [StepMetrics(3, {"loss": 0.1}, 1e9)]),
            lambda path: load_state(path, "abc"),
            is_run,
            forge_checkpoint,
        ),
    ),
    "preprocessing": (
        150,
        Kind(
            lambda path: save_preprocessing(path, whitening()),
            load_preprocessing,
            is_preprocessing,
            forge_arrow_file,
        ),
    ),
    "prepared images": (200, Kind(write_images, open_images, is_images, forge_arrow_file)),
    "run.json": (
        100,
        Kind(write_identity, read_identity, lambda t: isinstance(t, Tracker) and bool(t.uri), forge_json),
    ),
}


def test_they_are_a_thousand() -> None:
    assert sum(count for count, _ in KINDS.values()) == 1000


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails if the block allocates much, or tries to allocate very much."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    usual = resource.getrlimit(resource.RLIMIT_AS)
    arrow = pa.default_memory_pool().max_memory()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM_BYTES, usual[1]))
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, usual)
    assert peak < MOST_BYTES
    assert pa.default_memory_pool().max_memory() < arrow + MOST_BYTES


def causes(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit a process's memory")
@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_tampered_with_gives_an_error_of_ours_or_what_is_valid(
    name: str, tmp_path: Path
) -> None:
    count, kind = KINDS[name]
    good, target = tmp_path / "good", tmp_path / "target"
    kind.write(good)
    assert good.stat().st_size < FILE_BYTES
    assert kind.valid(kind.read(good))
    draw = random.Random(f"{SEED} {name}")
    refused = 0
    for number in range(count):
        if number % 2:
            kind.forge(draw, good, target)
        else:
            target.write_bytes(bytes_elsewhere(draw, good.read_bytes()))
        where = f"seed {SEED}, {name} number {number}"
        try:
            with little_memory():
                found = kind.read(target)
            assert kind.valid(found)
        except (UserError, RunError) as e:
            refused += 1
            if any("alloc" in text.lower() or "Memory" in text for text in causes(e)):
                pytest.fail(f"{where}: {e} (a large allocation)")
        except Exception as e:
            pytest.fail(f"{where}: {e!r}")
    print(f"seed {SEED}: {refused} of {count} refused")
    assert count // 2 < refused < count
