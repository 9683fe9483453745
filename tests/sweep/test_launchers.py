"""Sweeps in the hands of real engines: where jobs run changes nothing that they leave."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import ROOT, read_results
from helpers.sweeping import FEW, TOY, only_sweep, start, statuses

pytestmark = pytest.mark.slow

REFUSED = "x=0 failed: x=0: expected an integer >= 1"


@pytest.fixture(autouse=True)
def _threads_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def run(tmp_path: Path, *overrides: str, code: int, entry: str = TOY) -> tuple[str, str]:
    """What a sweep prints."""
    process = start(tmp_path, "-m", *overrides, entry=entry, PYTHONPATH=f"{ROOT}/tests:{ROOT}/src")
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err


def workers(tmp_path: Path) -> list[dict[str, Any]]:
    """What the processes that ran the jobs say of themselves."""
    found = only_sweep(tmp_path).glob("*/results.json")
    return [read_results(path.parent)["worker"] for path in found]


def test_joblib_shares_the_cores_and_survives_failures(tmp_path: Path) -> None:
    launcher = ("launcher=joblib", "hydra.launcher.n_jobs=2")
    _, err = run(tmp_path, "x=0,1,2", *launcher, code=1)
    told, last = err.splitlines()
    assert told == f"#0 {REFUSED}"
    assert last.startswith(f"1 failed; go on with: python {TOY} -m")
    assert "launcher=joblib" in last
    assert "hydra.launcher.n_jobs=2 sweep.resume=" in last
    assert statuses(only_sweep(tmp_path)) == ["finished", "finished", "failed"]
    cores = len(os.sched_getaffinity(0))
    assert {worker["threads"] for worker in workers(tmp_path)} == {str(max(1, cores // 2))}


def test_trainings_side_by_side(base_ckpt: Path, tmp_path: Path) -> None:
    records = tmp_path / "workers"
    records.mkdir()
    recorder = (
        "+callbacks.workers._target_=helpers.recorder.WorkerRecorder",
        f"+callbacks.workers.folder={records}",
    )
    launcher = ("launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", *launcher, *recorder)
    _, err = run(tmp_path, *arguments, code=1, entry="train.py")
    told, _ = err.splitlines()
    assert (
        told == "#0 lora.rank=0 failed: lora.rank=0: expected an integer >= 1, at most 2147483647"
    )
    assert statuses(only_sweep(tmp_path)) == ["finished", "finished", "failed"]
    threads = {json.loads(path.read_text())["threads"] for path in records.iterdir()}
    assert threads == {max(1, len(os.sched_getaffinity(0)) // 2)}


def test_submitit_brings_results_and_failures_back(tmp_path: Path) -> None:
    """launcher=slurm with processes of this machine for Slurm's nodes."""
    out, err = run(tmp_path, "x=0,1", "launcher=submitit_local", code=1)
    assert "failed: x=0: x=0: expected an integer >= 1" in out
    assert err.startswith(f"1 failed; go on with: python {TOY} -m")
    assert statuses(only_sweep(tmp_path)) == ["finished", "failed"]
    assert [worker["threads"] for worker in workers(tmp_path)] == ["1"]


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


def test_ray_spreads_trainings_over_nodes(
    base_ckpt: Path, tmp_path: Path, ray_address: str
) -> None:
    records = tmp_path / "workers"
    records.mkdir()
    arguments = (
        *(*FEW, f"base_ckpt={base_ckpt}", "launcher=ray"),
        f"hydra.launcher.ray.init.address={ray_address}",
        "+callbacks.workers._target_=helpers.recorder.WorkerRecorder",
        f"+callbacks.workers.folder={records}",
    )
    _, err = run(tmp_path, *arguments, "lora.rank=0,1,2", code=1, entry="train.py")
    assert "lora.rank=0 failed: lora.rank=0: expected an integer >= 1, at most 2147483647" in err
    assert "1 failed; go on with: python train.py -m" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert statuses(only_sweep(tmp_path)) == ["finished", "finished", "failed"]
    found = [json.loads(path.read_text()) for path in records.iterdir()]
    assert [worker["threads"] for worker in found] == [1, 1]
    assert len({worker["parent"] for worker in found}) == 2
    again = (*arguments, "lora.rank=1,2", "sweep.resume=latest")
    out, _ = run(tmp_path, *again, code=0, entry="train.py")
    assert out.count("finished before") == 2
    assert len(list(records.iterdir())) == 2


def test_no_cluster_to_run_on(tmp_path: Path) -> None:
    launcher = ("launcher=ray", "hydra.launcher.ray.init.address=auto")
    _, err = run(tmp_path, "x=1,2", *launcher, code=1)
    (line,) = err.splitlines()
    assert line.startswith("ConnectionError: Could not find any running Ray instance.")
    assert f"; go on with: python {TOY} -m" in line
