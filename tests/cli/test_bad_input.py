"""Bad input, through the command line: one message that says where and what, exit code 2, and nothing written.

Values are laid over the demo: 130 outer steps, window 12, unroll 40. Commands run in a folder with files, runs and
distilled sets that have something wrong with them (`scene`), which is the same after each of them as it was before.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.load import apply_overrides, load_config
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker
from tests.helpers.evaluated_sets import grey_set

DEMO = Path(str(files("ray_distill") / "demo.yaml"))
FORWARD = "rule: forward, unroll_length: 40, window_length: 12"
WINDOW, START = "truncation.window_length", "truncation.min_window_start"

# (override, the path of the key that is wrong, what is said of it)
VALUES = [
    ("truncation.window_length=80", "truncation.window_length", "40"),
    ("truncation.min_window_start=41", "truncation.min_window_start", "28"),
    ("truncation.rule=bptt", "truncation.window_length", "unknown key"),
    ("truncation.rule=zigzag", "truncation.rule", "rat-bptt"),
    ("truncation.unroll_length=0", "truncation.unroll_length", "greater than 0"),
    ("distilled.ipc=0", "distilled.ipc", "greater than 0"),
    ("distilled.ipc=1.0", "distilled.ipc", "integer"),
    ("distilled.learn_labels=1", "distilled.learn_labels", "boolean"),
    ("distilled.label_lr_scale=2", "distilled.label_lr_scale", "no effect"),
    (
        "distilled={ipc: 1, learn_labels: true, label_lr_scale: 0}",
        "distilled.label_lr_scale",
        "greater than 0",
    ),
    ("distilled.init=cats", "distilled.init", "unit-noise"),
    ("outer.lrr=1", "outer.lrr", "unknown key"),
    ("outer.lr=fast", "outer.lr", "number"),
    ("outer.lr=-1", "outer.lr", "greater than 0"),
    ("outer.clip_ema_decay=1.0", "outer.clip_ema_decay", "less than 1"),
    ("outer.steps=null", "outer.steps", "integer"),
    ("outer.augmentation=[spin]", "outer.augmentation.0", "rotate"),
    ("outer.augmentation=rotate", "outer.augmentation", "list"),
    ("inner.augmentation=[flip, flip]", "inner.augmentation", "duplicate"),
    ("inner.classes_per_batch=0", "inner.classes_per_batch", "greater than 0"),
    ("inner.augmentation_mode=both", "inner.augmentation_mode", "composed"),
    ("inner.augmentation_mode=composed", "inner.augmentation_mode", "no effect"),
    ("inner={augmentation: [flip], augmentation_mode: composed}", "inner.augmentation_mode", "two or more"),
    (
        "outer={steps: 1, augmentation: [crop, scale, rotate], augmentation_mode: composed}",
        "outer.augmentation_mode",
        "cutout",
    ),
    ("inner.batch_per_class=2", "inner.batch_per_class", "distilled.ipc"),
    ("inner.eps_convention=adamw", "inner.eps_convention", "higher"),
    ("data.source=ftp:there", "data.source", "parquet:PATH"),
    ("data.source='parquet:'", "data.source", "parquet:PATH"),
    ("data.test_source=parquet:x", "data.test_source", "no effect"),
    ("data.zca_shrinkage=0.1", "data.zca_shrinkage", "no effect"),
    ("data.validation_fraction=0", "data.validation_fraction", "greater than 0"),
    ("network.name=convnet", "network.name", "known: convnet1 .. convnet9"),
    ("network.name=resnet18-in", "network.name", "write resnet18, not resnet18-in"),
    ("network.name=mlp2-bn", "network.name", "mlp2 has no norms"),
    ("network.name='torchvision:'", "network.name", "torchvision:NAME"),
    ("network.norm=batch", "network.norm", "unknown key"),
    ("data.source=kmnist", "data.source", "'fashion-mnist'"),
    ("data.source=mnist:x", "data.source", "'npz:PATH'"),
    ("data.source='parquet:s3://me:secret@bucket/x'", "data.source", "AWS_SECRET_ACCESS_KEY"),
    ("data={source: 'npz:a', test_source: 'torch:b'}", "data.test_source", "'npz:PATH'"),
    ("data={source: cifar10, test_source: 'npz:b'}", "data.test_source", "no effect"),
    ("data.root=/data", "data.root", "no effect"),
    ("data={source: 'npz:a', root: /data}", "data.root", "no effect"),
    ("data.cache='s3://me:secret@bucket/x'", "data.cache", "AWS_SECRET_ACCESS_KEY"),
    ("data.image_size=8", "data.image_size", "no effect"),
    ("data={source: tiny-imagenet, image_size: 64}", "data.image_size", "no effect"),
    ("data={source: cub200}", "data.image_size", "many sizes"),
    ("data.image_size=0", "data.image_size", "greater than 0"),
    ("data.classes=[1]", "data.classes", "two or more"),
    ("data.classes=[1, 1]", "data.classes", "each once"),
    ("data.classes=[1, true]", "data.classes", "name or index"),
    ("data.classes=dog", "data.classes", "list"),
    ("data.max_broken=1", "data.max_broken", "no effect"),
    ("data={source: 'torch:a', max_broken: 1}", "data.max_broken", "no effect"),
    ("data={source: 'folder:a', max_broken: 1.5}", "data.max_broken", "fraction below 1"),
    ("data={source: 'folder:a', max_broken: -1}", "data.max_broken", "greater than or equal to 0"),
    ("network.name=resnext9", "network.name", "convnet1"),
    ("network={name: mlp2, pooling: max}", "network.pooling", "no effect with network.name mlp2"),
    (
        "network={name: resnet18, activation: gelu}",
        "network.activation",
        "no effect with network.name resnet18",
    ),
    ("network={name: 'torchvision:resnet18', width: 8}", "network.width", "no effect"),
    ("network.activation=tanh", "network.activation", "must be one of relu, leaky-relu"),
    ("network.pooling=median", "network.pooling", "must be one of avg, max, none"),
    ("network.width=0", "network.width", "greater than 0"),
    ("evaluation.networks=[]", "evaluation.networks", "at least 1"),
    ("evaluation.networks=[mlp2, mlp2]", "evaluation.networks", "duplicate"),
    ("evaluation.networks=[mlp2, vgg12]", "evaluation.networks", "unknown network 'vgg12'"),
    ("evaluation.networks=mlp2", "evaluation.networks", "list"),
    ("evaluation.subsets=[1, 500]", "evaluation.subsets", "below distilled.ipc"),
    ("evaluation.horizons=[]", "evaluation.horizons", "at least 1"),
    ("evaluation.horizons=[6, 3]", "evaluation.horizons", "strictly increasing"),
    ("evaluation.horizons=0", "evaluation.horizons", "greater than 0"),
    ("evaluation.baselines=[herding, median]", "evaluation.baselines.1", "'k_means'"),
    ("evaluation={baselines: [], random_real_draws: 2}", "evaluation.random_real_draws", "no effect"),
    ("evaluation={baselines: [herding], whole_train_batch: 2}", "evaluation.whole_train_batch", "no effect"),
    ("evaluation={baselines: [herding], robustness: true}", "evaluation.robustness", "requires random_real"),
    ("evaluation.lr_grid=[1, 3]", "evaluation.lr_grid", "no effect unless evaluation.tune_lr"),
    ("evaluation={tune_lr: true, lr_grid: [3, 1]}", "evaluation.lr_grid", "strictly increasing"),
    ("evaluation.subset_draws=3", "evaluation.subset_draws", "no effect"),
    ("evaluation.gpus_per_actor=0.5", "evaluation.gpus_per_actor", "no effect"),
    ("cluster.num_workers=3", "cluster.num_workers", "replicas"),
    ("cluster.min_workers=2", "cluster.min_workers", "below cluster.num_workers, which is 2"),
    ("cluster={num_workers: 2, min_workers: 0}", "cluster.min_workers", "greater than 0"),
    ("cluster={num_workers: 2, min_workers: [1, 2]}", "cluster.min_workers", "integer"),
    ("cluster.use_gpu=1", "cluster.use_gpu", "boolean"),
    ("seed=-1", "seed", "0"),
    ("name=a/b", "name", "pattern"),
    ("engine=magic", "engine", "adjoint"),
    ("truncation={rule: rat-bptt}", "truncation.unroll_length", "missing"),
    ("validation={}", "validation.horizon", "missing"),
    ("extra=1", "extra", "unknown key"),
    ("truncation.patience=3", "truncation.patience", "unknown key"),
    ("truncation.rule=forward", "truncation.patience", "missing"),
    (f"truncation={{{FORWARD}, patience: 0}}", "truncation.patience", "greater than 0"),
    (f"truncation={{{FORWARD}, patience: 2, redraw_every: 2}}", "truncation.redraw_every", "unknown key"),
    (f"truncation={{{FORWARD}, patience: 2, min_window_start: 29}}", "truncation.min_window_start", "= 28"),
    ("outer.lr={start: 1e-2, end: 1e-3}", "outer.lr", "piecewise"),
    ("outer.lr={schedule: sine, start: 1e-2, end: 1e-3}", "outer.lr", "piecewise"),
    ("outer.lr=[1e-2, 1e-3]", "outer.lr", "number"),
    ("outer.lr={schedule: cosine, start: 1e-2}", "outer.lr.end", "missing"),
    ("outer.lr={schedule: cosine, start: 1e-2, end: 0}", "outer.lr.end", "greater than 0"),
    ("outer.lr={schedule: linear, start: 1, end: 2, step: 3}", "outer.lr.step", "unknown key"),
    (
        "outer.lr={schedule: linear, start: 1, end: 2, steps: 1}",
        "outer.lr.steps",
        "greater than or equal to 2",
    ),
    ("inner.lr={schedule: piecewise, values: [1, 2], from_steps: [0]}", "inner.lr.from_steps", "which has 2"),
    (
        "inner.lr={schedule: piecewise, values: [1, 2], from_steps: [1, 2]}",
        "inner.lr.from_steps",
        "start with 0",
    ),
    ("inner.lr={schedule: piecewise, values: [1, 2], from_steps: [0, 0]}", "inner.lr.from_steps", "increase"),
    (
        "inner.lr={schedule: piecewise, values: [1, -2], from_steps: [0, 9]}",
        "inner.lr.values.1",
        "greater than 0",
    ),
    ("inner.lr={schedule: piecewise, values: [1], from_steps: [0]}", "inner.lr.values", "at least 2"),
    ("inner.lr={schedule: piecewise, values: [1, 2], from_steps: [0, 130]}", "inner.lr.from_steps", "is 130"),
    (
        "truncation.window_length={schedule: linear, start: 4.5, end: 9}",
        "truncation.window_length.start",
        "integer",
    ),
    # More of the kind.
    ("outer.lr=.nan", "outer.lr", "finite number"),
    ("outer.lr=.inf", "outer.lr", "finite number"),
    ("outer.steps=1e3", "outer.steps", "integer"),
    ("outer.steps=9999999999999", "outer.steps", "less than or equal to 2147483648"),
    ("seed=99999999999999999999", "seed", "less than or equal to"),
    ("network.width=100000", "network.width", "less than or equal to 65536"),
    ("data={source: imagenet, image_size: 100000}", "data.image_size", "less than or equal to 65536"),
    (f"{WINDOW}=100001", WINDOW, "less than or equal to 100000"),
    ("name=..", "name", "pattern"),
    (f"name={'a' * 101}", "name", "at most 100 characters"),
    ("data=5", "data", "mapping of keys to values"),
    ("outer=", "outer", "mapping of keys to values"),
    ("1=2", "1", "unknown key"),
    ("outer.steps=[" + "1, " * 1000 + "1]", "outer.steps", "1, 1, 1 ...)"),
    ("tracking.uri=http://h/?token=geheim", "tracking.uri", "contains a password"),
    ("tracking.uri=http://me:geheim@host", "tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
    ("tracking.experiment=''", "tracking.experiment", "at least 1 character"),
    ("checkpoint.every=0", "checkpoint.every", "greater than 0"),
    ("inner.momentum=0.5", "inner.momentum", "no effect unless inner.optimizer is sgd; remove it"),
    ("inner.weight_decay=0.1", "inner.weight_decay", "no effect unless inner.optimizer is sgd; remove it"),
    (
        "inner={optimizer: sgd, eps_convention: torch}",
        "inner.eps_convention",
        "no effect unless inner.optimizer is adam",
    ),
    ("precision=tf32", "precision", "tf32 has no effect without cluster.use_gpu; use float32 on CPUs"),
    ("precision=half", "precision", "'float64', 'float32', 'tf32' or 'bf16'"),
    ("compute.state_memory_gib=0", "compute.state_memory_gib", "greater than 0"),
    ("compute.compile=yes", "compute.compile", "'auto', 'always' or 'never'"),
    # 12 + 29 k / 129 rounds to 41 from k = 126.8 on.
    (f"{WINDOW}={{schedule: linear, start: 12, end: 41}}", WINDOW, "at step 127 they are 41 and 40;"),
    # Fits at both ends of the run, and not in its middle.
    (
        "truncation.unroll_length={schedule: piecewise, values: [40, 11, 40], from_steps: [0, 50, 51]}",
        *(WINDOW, "at step 50 they are 12 and 11;"),
    ),
    # The last step only.
    (
        "truncation.unroll_length={schedule: piecewise, values: [40, 11], from_steps: [0, 129]}",
        *(WINDOW, "at step 129 they are 12 and 11;"),
    ),
]

# Several overrides that do not go together; the same.
TOGETHER = [
    # 40 - 20 k / 129 rounds to 21 from k = 119.3 on.
    (
        [f"{START}=10", "truncation.unroll_length={schedule: linear, start: 40, end: 20}"],
        *(START, "at step 120 is 21 - 12 = 9 (got 10)"),
    ),
    # 12 + 19 (1 - cos(pi k / 129)) / 2 rounds to 31 from k = 129 (1 - acos(36/38) / pi) = 115.6 on.
    (
        [f"{START}=10", f"{WINDOW}={{schedule: cosine, start: 12, end: 31}}"],
        *(START, "at step 116 is 40 - 31 = 9 (got 10)"),
    ),
    # Two thousand million steps are not gone through one by one: 12 + 29 k / (2^31 - 1) rounds to 41 from
    # k = 28.5 (2^31 - 1) / 29 = 2110458066.9 on.
    (
        ["outer.steps=2147483648", f"{WINDOW}={{schedule: linear, start: 12, end: 41}}"],
        *(WINDOW, "at step 2110458067 they are 41 and 40;"),
    ),
    (
        ["outer.steps=1", "outer.lr={schedule: cosine, start: 1e-2, end: 1e-3}"],
        "outer.lr",
        "outer.steps is 1",
    ),
    (
        ["precision=bf16", "compute.product=forward"],
        "compute.product",
        "is not supported with precision bf16",
    ),
    (["precision=bf16", "engine=higher"], "precision", "bf16 has no effect with engine higher"),
    (
        ["compute.compile=always", "engine=higher"],
        "compute.compile",
        "no effect with engine higher (got 'always')",
    ),
    (
        ["data.source=npz:s3://me:geheim@a/b", "data.test_source=torch:s3://me:geheim@a/b"],
        *("data.source", "contains a password"),
    ),
]

FILES = {
    "empty.yaml": b"",
    "list.yaml": b"- 1\n",
    "open.yaml": b"a: [1\n",
    "bytes.yaml": b"\xff\xfe\x00a",
    "nul.yaml": b"a: \x00",
    "two.yaml": b"a: 1\n---\na: 2\n",
    "twice.yaml": b"name: a\nouter: {lr: 1}\nname: b\n",
    "twice_inside.yaml": b"outer:\n  lr: 1\n  steps: 2\n  lr: 3\n",
    "deep.yaml": b"a: " + b"[" * 2000,
    "circle.yaml": b"a: &x [*x]\n",
    "bomb.yaml": b"a0: &a0 [x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
    "number.yaml": b"seed: " + b"9" * 5000,
    "date.yaml": b"name: 2026-13-45\n",
    "python.yaml": b"a: !!python/object/apply:os.system ['touch pwned']\n",
    "keys.yaml": b"[1, 2]: 3\n",
}
"""Files that are no configuration."""
SAID = ("empty.yaml", "twice.yaml", "twice_inside.yaml", "deep.yaml", "circle.yaml", "bomb.yaml")
"""Those of which the commands below expect more than their name."""

# (command, parts of what is said). What is typer's to refuse is said in a box.
COMMANDS = [
    *((f"distill {name}", f"error: {name}: ") for name in FILES if name not in SAID),
    ("distill nowhere.yaml", "error: nowhere.yaml: cannot be read"),
    ("distill .", "cannot be read"),
    ("distill empty.yaml", "must be a mapping of sections (got NoneType)"),
    ("distill twice.yaml", "duplicate key 'name'", "line 3"),
    ("distill twice_inside.yaml", "duplicate key 'lr'", "line 4"),
    ("distill deep.yaml", "nested too deeply"),
    ("distill circle.yaml", "more than 100,000 values, or a circular alias"),
    ("distill bomb.yaml", "more than 100,000 values"),
    ("distill demo.yaml --set outer.lr", "--set 'outer.lr': must be of the form a.b=value"),
    ("distill demo.yaml --set =1", "must be of the form a.b=value"),
    ("distill demo.yaml --set outer..lr=1", "must be of the form a.b=value"),
    ("distill demo.yaml --set .=1", "must be of the form a.b=value"),
    ("distill demo.yaml --set name.x=1", "name is a value ('demo'), not a section"),
    ("distill demo.yaml --set outer.lr=[1", "--set outer.lr: '[1' is not valid YAML"),
    ("distill demo.yaml --set 'outer={lr: 1, lr: 2}'", "--set outer: ", "duplicate key 'lr'"),
    ("distill demo.yaml --set outer.lr=0 --set distilled.ipc=0", "outer.lr: ", "distilled.ipc: "),
    ("demo --set outer.stepz=3", "outer.stepz: unknown key 'stepz' in outer"),
    # What only the data can tell.
    (
        "distill demo.yaml --set distilled.ipc=150 --set distilled.init=real",
        "distilled.ipc: must be at most 1",
        "(got 150)",
    ),
    (
        "distill demo.yaml --set distilled.ipc=150",
        "too few for a baseline with the set's 150 images of each class",
    ),
    (
        "distill demo.yaml --set outer.batch_size=5000",
        "outer.batch_size: must be at most the 1",
        "(got 5000)",
    ),
    (
        "distill demo.yaml --set data.limit=5",
        "data.limit: must be at least one image for each of the 10 classes",
    ),
    ("distill demo.yaml --set data.classes=[cat,dog]", "data.classes: there is no class 'cat'; allowed: "),
    ("distill demo.yaml --set data.classes=[0,10]", "data.classes: there is no class 10"),
    ("distill demo.yaml --set inner.classes_per_batch=11", "inner.classes_per_batch: must be at most the 10"),
    ("distill demo.yaml --set network.name=convnet9", "network.name: convnet9 for 8x8 images"),
    ("distill demo.yaml --set evaluation.networks=[convnet9]", "evaluation.networks: convnet9 for 8x8"),
    ("distill demo.yaml --set 'network={name: \"torchvision:nothing\"}'", "network.name: ", "nothing"),
    ("distill demo.yaml --set data.source=folder:nowhere", "nowhere does not exist"),
    ("distill demo.yaml --set data.source=folder:set", "data.test_source"),
    ("distill demo.yaml --set data.source=parquet:nowhere", "nowhere does not exist, and no file matches"),
    ("distill demo.yaml --set data.source=parquet:ftp://a/b", "ftp://a/b is not a usable path or URI"),
    ("distill demo.yaml --set data.source=npz:nowhere.npz", "nowhere.npz does not exist"),
    (
        "distill demo.yaml --set data.source=npz:text",
        "text is not an .npz file of plain arrays: it contains other",
    ),
    (
        "distill demo.yaml --set data.source=torch:text",
        "text is not a file of tensors that torch.save wrote: it",
    ),
    ("data prepare npz:floats.npz", "images must be uint8"),
    ("data prepare folder:sizes", "sizes/b/0.png", "data.image_size"),
    ("data prepare folder:broken", "broken/a/0.png", "data.max_broken"),
    ("data prepare kmnist", "data.source: must be one of 'digits'"),
    ("data prepare ''", "data.source: must be one of 'digits'"),
    ("data prepare folder:nowhere", "nowhere does not exist"),
    ("data prepare nowhere.yaml", "nowhere.yaml: cannot be read"),
    ("data prepare digits --set outer.lr=1", "outer: unknown key 'outer' at the top"),
    ("data prepare digits --set data.cache=text/x", "text/x"),
    ("data prepare digits --set data.cache=s4://bucket/x", "s4://bucket/x is not a usable path or URI"),
    ("data prepare digits --picture no/x.png", "no/x.png: folder no does not exist"),
    ("data prepare digits --picture x.txt", "--picture x.txt: must end in .png"),
    (
        "data prepare digits --picture sheet.png",
        "sheet.png: already exists; nothing was written. Use another --picture",
    ),
    # Stores.
    (
        "distill demo.yaml --set tracking.uri=nowhere",
        "MLflow at nowhere: not a tracking store; set tracking.uri or $MLFLOW_TRACKING_URI to sqlite:///FILE",
    ),
    ("distill demo.yaml --set tracking.uri=ftp://a", "MLflow at ftp://a: not a tracking store"),
    ("distill demo.yaml --set tracking.uri=mysql://me@127.0.0.1:9/x", "MLflow at mysql://me@127.0.0.1:9/x: "),
    ("distill demo.yaml --set tracking.uri=sqlite:///text/x.db", "text/x.db: its folder cannot be created"),
    ("distill demo.yaml --set tracking.uri=sqlite:///text", "MLflow at sqlite:///", "text: "),
    # Folders.
    ("distill demo.yaml --out text", "text: exists and is not empty; nothing was written. Use --resume"),
    ("distill demo.yaml --out text/run", "text is not a writable folder; use another --out"),
    (
        "distill demo.yaml --out foreign",
        "foreign: exists and is not empty; nothing was written. Use --resume",
        "--force",
    ),
    ("distill demo.yaml --out begun", "begun: exists and is not empty"),
    ("demo --out foreign", "foreign: exists and is not empty; nothing was written. Use another --out."),
    ("distill demo.yaml --out foreign --force", "It has no run.json, and --force deletes nothing but runs"),
    ("distill demo.yaml --out text --force", "text: exists and is not empty"),
    ("distill demo.yaml --out garbled --force", "garbled: holds no run (no readable run.json)"),
    (
        "distill demo.yaml --out mixed --force",
        "mixed: holds diary.txt, which no run wrote; nothing was deleted",
    ),
    ("distill demo.yaml --out busy --force", "busy: another process is at work in it"),
    ("distill demo.yaml --out begun --force --set outer.batch_size=5000", "outer.batch_size: "),
    (
        "distill demo.yaml --out begun --force --resume",
        "--force: would delete the run that --resume continues",
    ),
    ("distill demo.yaml --out busy --resume", "busy: another process is at work in it"),
    ("distill demo.yaml --out nowhere --resume", "nowhere: holds no run (no readable run.json)"),
    ("distill demo.yaml --out foreign --resume", "foreign: holds no run (no readable run.json)"),
    ("distill demo.yaml --out garbled --resume", "garbled: holds no run (no readable run.json)"),
    ("distill demo.yaml --out untyped --resume", "untyped: holds no run (no readable run.json)"),
    (
        "distill demo.yaml --out done --resume",
        "done: holds a run that is finished; its results are in done/summary",
    ),
    ("distill demo.yaml --out begun --resume --set seed=1", "begun: holds a run of another configuration"),
    (
        "distill demo.yaml --out begun --resume --set tracking.uri=http://a",
        "tracking.uri: the run in begun is",
    ),
    # Distilled sets.
    ("show nowhere.parquet", "nowhere.parquet is not a file"),
    ("show .", ". is not a file"),
    ("show demo.yaml", "demo.yaml is not an intact distilled dataset"),
    ("show cut.parquet", "cut.parquet is not an intact distilled dataset"),
    ("show changed.parquet", "changed.parquet is not an intact distilled dataset"),
    ("show good.parquet --out x.foo", "--out x.foo: must end in .png"),
    ("show good.parquet --out no/x.png", "no/x.png: folder no does not exist"),
    (
        "show good.parquet --out sheet.png",
        "sheet.png: already exists; nothing was written. Use another --out, or remove it",
    ),
    ("evaluate nowhere.parquet", "nowhere.parquet is not a file"),
    ("evaluate cut.parquet", "cut.parquet is not an intact distilled dataset"),
    ("evaluate good.parquet --out text", "text: exists and is not an evaluation; nothing was written"),
    ("evaluate good.parquet --horizons many", "--horizons: must be integers such as 1,2,5; got 'many'"),
    ("evaluate good.parquet --horizons 9,3", "evaluation.horizons"),
    ("evaluate good.parquet --networks mlp2,vgg12", "unknown network 'vgg12'"),
    ("evaluate good.parquet --baselines luck", "evaluation.baselines"),
    ("evaluate good.parquet --seeds 0", "evaluation.seeds"),
    ("evaluate good.parquet --baselines none --robustness", "evaluation.robustness"),
    (
        "evaluate good.parquet --baselines none --set evaluation.random_real_draws=2",
        "random_real_draws: has no effect",
    ),
    ("evaluate good.parquet --out foreign", "foreign: exists and is not an evaluation; nothing was written"),
    ("evaluate good.parquet good.parquet", "good.parquet, good.parquet: duplicate set"),
    ("evaluate good.npz", "does not describe how to use it; pass --like"),
    ("evaluate good.parquet --space pixels", "--space pixels: has no effect without --like"),
    ("evaluate good.parquet --like demo.yaml", "--like demo.yaml: needs --space"),
    ("evaluate good.parquet --set outer.lr=1", "--set outer.lr=1: evaluate can change evaluation, tracking"),
    ("evaluate good.parquet --set distilled.ipc=10", "evaluate can change evaluation"),
    ("evaluate good.parquet --set seed=3", "evaluate can change evaluation"),
    ("evaluate good.parquet --set cluster.num_workers=2", "evaluate can change evaluation"),
    (
        "evaluate good.parquet --set evaluation.networks=[vgg12]",
        "evaluation.networks: ",
        "unknown network 'vgg12'",
    ),
    ("evaluate good.parquet --set data.source=folder:nowhere", "nowhere does not exist"),
    ("evaluate alien.parquet", "name: is missing; it has no default", "outer: is missing"),
    # The other verbs, and what no verb knows.
    ("plan nowhere.yaml", "nowhere.yaml: cannot be read"),
    ("plan demo.yaml --json no/x", "no/x: folder no does not exist"),
    ("plan demo.yaml --json text", "text: already exists; nothing was written. Use another --json"),
    ("plan demo.yaml --memory 0", "'--memory'", "greater than or equal to 0.1"),
    ("bench overhead --json text", "text: already exists; nothing was written. Use another --json"),
    ("bench overhead --repeats 0", "'--repeats'", "greater than or equal to 1"),
    ("bench workers --set outer.steps=3", "--set outer.steps=3: has no effect"),
    ("bench metagradient --ipc many", "argument --ipc: invalid int value: 'many'"),
    ("destil demo.yaml", "No such command 'destil'"),
    ("distill", "Missing argument 'CONFIG.yaml'"),
    ("distill demo.yaml --fast", "No such option: --fast"),
    ("distill demo.yaml --set", "'--set' requires an argument"),
]

Snapshot = dict[str, str]


def snapshot(folder: Path) -> Snapshot:
    """What is in the folder, folders too, by digests."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in folder.rglob("*")
    }


def run_of(folder: Path, **changes: object) -> None:
    """A folder with an unfinished run of the demo, as the run leaves it."""
    RunDir(folder).claim(load_config(DEMO), Tracker(f"sqlite:///{folder}/mlflow.db", "abc"))
    identity = json.loads((folder / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(identity))
    (folder / "train" / "run").mkdir(parents=True)
    (folder / "train" / "run" / "state.arrow").write_text("precious")
    (folder / "mlflow.db").touch()


def pictures(folder: Path, *sides: int) -> None:
    for name, side in zip("ab", sides, strict=True):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / name / "0.png")


def distilled_sets(folder: Path) -> None:
    """A good one, and some that are not."""
    good = grey_set(load_config(DEMO))
    good.save(folder / "good.parquet")
    content = (folder / "good.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    place = content.index(good.images_NCHW.numpy().tobytes())
    (folder / "changed.parquet").write_bytes(content[:place] + b"\x00\x00\x00\x40" + content[place + 4 :])
    good.__class__(**{**vars(good), "config": {}}).save(folder / "alien.parquet")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands run."""
    folder = tmp_path_factory.mktemp("scene")
    shutil.copy(DEMO, folder / "demo.yaml")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "text").write_text("nothing that anybody could read")
    (folder / "sheet.png").write_text("somebody's")
    np.savez(folder / "floats.npz", images=np.zeros((4, 8, 8)), labels=np.array([0, 1, 0, 1]))
    pictures(folder / "set", 8, 8)
    pictures(folder / "sizes", 8, 9)
    pictures(folder / "broken", 8, 8)
    (folder / "broken" / "a" / "0.png").write_bytes(b"\x89PNG")
    distilled_sets(folder)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "diary.txt").write_text("precious")
    for name in ("begun", "done", "mixed", "garbled", "busy"):
        run_of(folder / name)
    run_of(folder / "untyped", uri=5)
    (folder / "done" / "summary.json").write_text("{}")
    (folder / "mixed" / "diary.txt").write_text("precious")
    (folder / "garbled" / "run.json").write_text('{"config_hash": ')
    with RunDir(folder / "busy").lock():
        yield folder


def refused(arguments: list[str], scene: Path, patch: pytest.MonkeyPatch) -> Result:
    """The command's result: exit code 2, one message, and all as it was."""
    patch.chdir(scene)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # What is wrong is known without a cluster; starting one takes seconds.
    patch.setattr("ray_distill.cluster.connection.cluster", lambda **options: nullcontext())
    before = snapshot(scene)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, snapshot(scene) == before) == (2, True), (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") <= 1
    assert "geheim" not in result.output
    return result


@pytest.mark.parametrize(
    ("overrides", "path", "says"),
    [*(([override], *rest) for override, *rest in VALUES), *TOGETHER],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_a_wrong_value_is_refused_by_its_path(
    overrides: list[str], path: str, says: str, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line begins with the key's path and says what is allowed."""
    sets = [word for override in overrides for word in ("--set", override)]
    result = refused(["distill", "demo.yaml", "--out", "new", *sets], scene, monkeypatch)
    lines = result.stderr.removeprefix("error: ").splitlines()
    assert any(line.startswith(f"{path}: ") and says in line for line in lines), lines
    assert max(map(len, lines)) < 700


@pytest.mark.parametrize(
    ("command", "says"), [(c, s) for c, *s in COMMANDS], ids=[c[0][:60] for c in COMMANDS]
)
def test_a_command_that_cannot_be_is_refused(
    command: str, says: list[str], scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = refused(shlex.split(command), scene, monkeypatch)
    assert not [part for part in says if part not in result.stderr], result.stderr
    assert result.stderr.startswith(("error: ", "Usage: ", "usage: ")) or "Error" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MLFLOW_TRACKING_URI", "ftp://me:geheim@a", "MLflow at ftp://me:***@a: not a tracking store"),
        ("RAY_DISTILL_CACHE", "text", "text"),
    ],
)
def test_a_wrong_variable_is_refused(
    variable: str, value: str, says: str, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    monkeypatch.setattr("ray_distill.cluster.connection.cluster", lambda **options: nullcontext())
    monkeypatch.setenv(variable, value)
    before = snapshot(scene)
    result = CliRunner().invoke(app, ["distill", "demo.yaml"])
    assert (result.exit_code, snapshot(scene) == before) == (2, True), result.output
    assert says in result.stderr
    assert "geheim" not in result.output


@pytest.mark.parametrize(
    "command", ["distill twice.yaml", "distill demo.yaml --out mixed --force", "destil x"]
)
def test_a_process_ends_with_exit_code_2(command: str, scene: Path) -> None:
    """As a person runs it."""
    before = snapshot(scene)
    main = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]
    done = subprocess.run(
        [*main, *shlex.split(command)], cwd=scene, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert snapshot(scene) == before


def test_force_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    """MLflow's store stays, and what a link points to; a free folder is free with it too."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "state.arrow").write_text("precious")
    place = RunDir(tmp_path / "run")
    place.check_replaceable()
    run_of(place.path)
    shutil.rmtree(place.train)
    place.train.symlink_to(tmp_path / "disk")
    for path in (place.artifact, place.contact_sheet, place.evaluation, place.summary):
        path.write_text("old")
    (place.path / "distilled.sheet.png").write_text("old")
    place.check_replaceable()
    with place.lock():
        place.clear()
        place.check_empty("")
    assert {p.name for p in place.path.iterdir()} == {"mlflow.db", ".lock"}
    assert (tmp_path / "disk" / "state.arrow").read_text() == "precious"
    place.check_replaceable()


def test_what_is_read_as_yaml_is_what_was_written() -> None:
    """An alias is no mistake; nor are keys of one name in two sections."""
    text = "a: &x {lr: 1}\nb: *x\nc: {lr: 2}\n"
    assert yaml.safe_load(text) == apply_overrides({}, ["a={lr: 1}", "b={lr: 1}", "c={lr: 2}"])
    assert apply_overrides({}, ["x=[&y {lr: 1}, *y, {<<: *y}]"]) == {"x": [{"lr": 1}] * 3}
