"""The templates in experiments/cluster, as far as they can be tested without a cluster.

Not tested: that a cloud, Kubernetes or Slurm accepts them; that the image builds.
"""

import json
import os
import re
import signal
import subprocess
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ray_distill.config.load import load_config

ROOT = Path(__file__).parents[1]
FILES = ROOT / "experiments" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(line.split("==") for line in PROJECT["tool"]["uv"]["constraint-dependencies"])
PYTHON = "py311"


def read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


@pytest.mark.parametrize("name", ["launcher-aws.yaml", "launcher-on-premises.yaml"])
def test_the_launcher_files_fit_rays_own_schema(name: str) -> None:
    """The schema of the installed Ray; nodes start with a token, which the files bring; node types are ones that exist."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    values = read(name)
    jsonschema.validate(values, schema)
    for role in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in values[role] if "ray start" in command)
        assert "export RAY_AUTH_MODE=token" in start
    assert any(target.endswith(".ray/auth_token") for target in values["file_mounts"])
    types = values.get("available_node_types", {})
    assert (values.get("head_node_type") in types) == bool(types)


def test_the_schema_detects_an_unknown_key() -> None:
    """So that the test above can fail."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        jsonschema.validate(read("launcher-aws.yaml") | {"idle_minutes": 3}, schema)


def test_every_file_names_the_pinned_ray() -> None:
    """The image, its base and KubeRay's rayVersion: where versions differ, nodes refuse each other."""
    text = "\n".join(path.read_text() for path in FILES.iterdir())
    versions = re.findall(r"(?:rayproject/ray|REGISTRY/ray-distill):(\d[\d.]*\d)", text)
    assert len(versions) >= 4
    assert set(versions) == {PINNED["ray"]}
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    assert f"rayproject/ray:{PINNED['ray']}-{PYTHON}\n" in (FILES / "Dockerfile").read_text()


def test_the_runtime_environment_has_the_projects_dependencies() -> None:
    """The project's dependencies but for Ray, at the versions that its tests have passed with."""
    needed = [name for name in PROJECT["project"]["dependencies"] if not name.startswith("ray[")]
    assert len(needed) == len(PROJECT["project"]["dependencies"]) - 1
    environment = read("runtime-env.yaml")
    assert set(environment) == {"uv", "config"}
    assert environment["uv"] == [f"{name}=={PINNED[name]}" if name in PINNED else name for name in needed]


RAYJOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "rayClusterSpec",
}
"""Fields of RayJobSpec that the manifest uses; from KubeRay's ray-operator/apis/ray/v1 (rayjob_types.go,
raycluster_types.go), as are those of the others. authOptions: Ray's guide to tokens on KubeRay, 1.5.1 or later."""
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD = {"rayStartParams", "template"}
WORKERS = HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_the_manifest_is_a_rayjob() -> None:
    """Fields spelt as KubeRay spells them, required ones there; claims mounted that are declared; parameters of
    `ray start` are text, as KubeRay demands."""
    manifest = read("rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    spec = manifest["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) == RAYJOB
    assert set(cluster) == CLUSTER
    assert set(cluster["headGroupSpec"]) == HEAD
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}


def test_the_workers_fit_into_the_manifests_pods() -> None:
    """The options on its command line are a run that the package accepts, and its workers fit the pods."""
    spec = read("rayjob.yaml")["spec"]
    words = spec["entrypoint"].split()
    assert words[:2] == ["ray-distill", "distill"]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = load_config(ROOT / "experiments" / Path(words[2]).name, overrides)
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["rayStartParams"]["num-cpus"])
    per_pod = cpus // config.cluster.cpus_per_worker
    assert per_pod * group["replicas"] >= config.cluster.num_workers
    assert cpus < int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert words[words.index("--out") + 1].startswith("/shared/")


STUBS = {
    "scontrol": 'echo "scontrol $*" >>"$LOG"; printf "m1\\nm2\\nm3\\n"',
    # What srun would run on another machine is run here.
    "srun": 'echo "srun $*" >>"$LOG"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1 fe80::1",
    "ray": 'echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >>"$LOG"; exec sleep 60',
    "python": 'echo asked >>"$LOG"; [[ $(grep -c asked "$LOG") -ge 2 ]]',
    "ray-distill": (
        'trap \'echo stopped >>"$LOG"; exit 143\' TERM; echo "at $RAY_ADDRESS" >>"$LOG"; '
        'for i in $(seq "${STEPS:-1}"); do sleep 0.05; done; exit "${CODE:-0}"'
    ),
}


class Slurm:
    """The script, with stubs for the commands of Slurm and Ray."""

    def __init__(self, folder: Path) -> None:
        self.log, self.results = folder / "log", folder / "results"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, body in STUBS.items():
            (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_folder / name).chmod(0o755)
        self._environment = os.environ | {
            "RAY_DISTILL_BIN": str(bin_folder),
            "LOG": str(self.log),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "m[1-3]",
            "SLURM_CPUS_PER_TASK": "16",
            "RAY_DISTILL_POLL_S": "0",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(FILES / "slurm.sh"), *arguments],
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> int:
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=60)
        assert "line " not in output, output
        return process.returncode

    def steps(self) -> list[str]:
        """What was asked of srun: machine and command."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("srun")]
        return [re.sub(r"^srun .*--nodelist=(\S+)", r"\1:", line) for line in lines]


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_the_slurm_script_starts_a_node_on_each_machine_and_the_run_on_the_first(slurm: Slurm) -> None:
    """Head first, the others to its address, a core of each left; the run once all are there (asked twice), with the
    options given, and its exit code; a token of 64 digits for all; everything ended at the end."""
    assert slurm.run("c.yaml", str(slurm.results), "--set", "seed=1", CODE="2") == 2
    address = "10.0.0.1:23456"
    temporary = "--temp-dir=/tmp/rd-123456"
    steps = slurm.steps()
    nodes = [step for step in steps if "ray start" in step]
    assert sorted(nodes) == [
        f"m1: ray start --block --head --node-ip-address=10.0.0.1 --port=23456 --num-cpus=15 {temporary}",
        f"m2: ray start --block --address={address} --num-cpus=15 {temporary}",
        f"m3: ray start --block --address={address} --num-cpus=15 {temporary}",
    ]
    assert steps[0] == "m1: hostname --ip-address"
    assert steps[-1] == f"m1: ray-distill distill c.yaml --out {slurm.results} --set seed=1"
    log = slurm.log.read_text().splitlines()
    assert log.count("asked") == 2
    assert log.count("token 64 token") == 3
    assert f"at {address}" in log


def test_the_slurm_script_resumes_an_existing_run(slurm: Slurm) -> None:
    slurm.results.mkdir()
    (slurm.results / "run.json").touch()
    assert slurm.run("c.yaml", str(slurm.results)) == 0
    assert slurm.steps()[-1] == f"m1: ray-distill distill c.yaml --out {slurm.results} --resume"


def test_the_slurm_script_forwards_sigterm_and_waits(slurm: Slurm) -> None:
    """What Slurm does before the time is up: the run gets it, cleans up, and its exit code is the script's."""
    process = slurm.start("c.yaml", str(slurm.results), STEPS="1000")
    deadline = time.monotonic() + 60
    while not slurm.log.exists() or "at 10.0.0.1" not in slurm.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert slurm.log.read_text().splitlines()[-1] == "stopped"


def test_the_slurm_script_prints_its_usage(slurm: Slurm) -> None:
    assert slurm.run("c.yaml") == 2
    assert not slurm.log.exists()
