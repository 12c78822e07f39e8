"""A whole run beside a planted password, and the ports that it opens."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import mlflow_server
from tests.helpers.processes import descendants_named
from tests.helpers.tiny import tiny_config

PLANTED = "geheimwort"


def listening() -> dict[str, str]:
    """Socket -> address, in hexadecimal, of what listens on this machine."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        if Path(f"/proc/net/{name}").exists()
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[9]: row[1].partition(":")[0] for row in rows if row[3] == "0A"}


def sockets_of(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux to see who listens")
def test_a_cluster_of_our_own_listens_to_this_machine_alone(ray_cluster: None) -> None:
    """Every port of this process and of those that it started, Ray's among them, is on 127.0.0.1 or ::1."""
    addresses = listening()
    ours = {
        pid: {addresses[s] for s in sockets_of(pid) if s in addresses}
        for pid in [os.getpid(), *descendants_named("")]
    }
    assert sum(map(len, ours.values())) >= 3, "no port of Ray's was seen"
    assert set().union(*ours.values()) <= LOOPBACK, ours


def _where_it_listens() -> tuple[float, list[str]]:
    """What a worker of Ray Train's does here: a sum over all, and word of the ports of its process."""
    import torch
    import torch.distributed as dist

    total = torch.ones(1)
    dist.all_reduce(total)
    known = listening()
    ours = sorted({known[s] for s in sockets_of(os.getpid()) if s in known})
    return float(total), ours


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux to see who listens")
@pytest.mark.slow
def test_workers_that_meet_listen_to_this_machine_alone(ray_cluster: None, tmp_path: Path) -> None:
    """Two workers sum 1 and 1, and all that rank 0 listens to is on 127.0.0.1. By torch's own way it listened to all
    networks."""
    from ray import cloudpickle
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ray_distill.cluster.process_group import GroupConfig

    # Workers have no way to this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    result = TorchTrainer(
        _where_it_listens,
        torch_config=GroupConfig(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()
    total, addresses = result.return_value
    assert total == 2.0
    assert len(addresses) > 0
    assert set(addresses) <= LOOPBACK


@pytest.mark.slow
def test_a_password_of_the_store_is_left_nowhere(tmp_path: Path) -> None:
    """A run to its end, with MLflow's password in the environment: the word is in no file, of the run, of Ray or of
    MLflow, under any name, and not in what was printed."""
    (tmp_path / "server").mkdir()
    config = tiny_config(outer={"steps": 5})
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    # Ray's sockets need a short path.
    ray = Path(f"/tmp/rd-{os.getpid()}")
    with mlflow_server(tmp_path / "server") as server:
        at = server.uri.removeprefix("http://")
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"http://me:{PLANTED}@{at}",
            "RAY_TMPDIR": str(ray),
        }
        ray.mkdir()
        main = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]
        done = subprocess.run(
            [*main, "distill", "tiny.yaml", "--out", "run"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"open http://me:***@{at} in a browser" in done.stdout
    files = [path for folder in (tmp_path, ray) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [str(path) for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert [str(path) for path in files if PLANTED in str(path)] == []
    assert PLANTED not in done.stdout + done.stderr
