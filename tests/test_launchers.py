"""Sweeps in the hands of real engines: where jobs run changes nothing that they leave."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sweeping import FEW, only_sweep, read_summary, start

REFUSED = "lora.rank=0 failed: lora.rank=0: expected an integer >= 1"


def sweep(
    tmp_path: Path, base_ckpt: Path, *overrides: str, code: int
) -> tuple[str, str, list[dict[str, Any]]]:
    """What a sweep prints, and what its workers say of themselves."""
    workers = tmp_path / "workers"
    workers.mkdir(exist_ok=True)
    process = start(
        tmp_path,
        *("-m", *FEW, f"base_ckpt={base_ckpt}", *overrides),
        "+callbacks.workers._target_=recorder.WorkerRecorder",
        f"+callbacks.workers.folder={workers}",
        PYTHONPATH=f"{ROOT}/tests:{ROOT}/src",
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err, [json.loads(path.read_text()) for path in workers.iterdir()]


def statuses(tmp_path: Path) -> list[str]:
    return [row["status"] for row in read_summary(only_sweep(tmp_path))]


@pytest.fixture(autouse=True)
def _threads_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_joblib_shares_the_cores_and_survives_failures(base_ckpt: Path, tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    _, err, workers = sweep(tmp_path, base_ckpt, "lora.rank=0,1,2", *launcher, code=1)
    told, last = err.splitlines()
    assert told == f"#0 {REFUSED}"
    assert last.startswith("1 failed; go on with: python train.py -m")
    assert "hydra/launcher=joblib hydra.launcher.n_jobs=2 sweep.resume=" in last
    assert statuses(tmp_path) == ["finished", "finished", "failed"]
    cores = len(os.sched_getaffinity(0))
    assert {worker["threads"] for worker in workers} == {max(1, cores // 2)}


def test_submitit_brings_results_and_failures_back(base_ckpt: Path, tmp_path: Path) -> None:
    """launcher=slurm with processes of this machine for Slurm's nodes."""
    launcher = "launcher=submitit_local"
    out, err, workers = sweep(tmp_path, base_ckpt, "lora.rank=0,1", launcher, code=1)
    assert "failed: lora.rank=0: lora.rank=0: expected an integer >= 1" in out
    assert err.startswith("1 failed; go on with: python train.py -m")
    assert statuses(tmp_path) == ["finished", "failed"]
    assert [worker["threads"] for worker in workers] == [1]


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of two nodes, each with one core and a store of its own, on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/tests:{ROOT}/src")
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


def test_ray_spreads_jobs_over_nodes(base_ckpt: Path, tmp_path: Path, ray_address: str) -> None:
    launcher = ("launcher=ray", f"hydra.launcher.ray.init.address={ray_address}")
    _, err, workers = sweep(tmp_path, base_ckpt, "lora.rank=0,1,2", *launcher, code=1)
    assert REFUSED in err
    assert "1 failed; go on with: python train.py -m" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert statuses(tmp_path) == ["finished", "finished", "failed"]
    assert [worker["threads"] for worker in workers] == [1, 1]
    assert len({worker["parent"] for worker in workers}) == 2
    again = ("lora.rank=1,2", *launcher, "sweep.resume=latest")
    out, _, workers = sweep(tmp_path, base_ckpt, *again, code=0)
    assert out.count("finished before") == 2
    assert len(workers) == 2


def test_no_cluster_to_run_on(base_ckpt: Path, tmp_path: Path) -> None:
    launcher = ("launcher=ray", "hydra.launcher.ray.init.address=auto")
    _, err, _ = sweep(tmp_path, base_ckpt, "lora.rank=1,2", *launcher, code=1)
    (line,) = err.splitlines()
    assert line.startswith("ConnectionError: Could not find any running Ray instance.")
    assert "; go on with: python train.py -m" in line
