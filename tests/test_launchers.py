"""Sweeps in the hands of real engines: where jobs run changes nothing that they leave."""

import os
from pathlib import Path

from conftest import ROOT
from sweeping import FEW, only_sweep, read_summary, start


def test_joblib_shares_the_cores_and_survives_failures(base_ckpt: Path, tmp_path: Path) -> None:
    threads = tmp_path / "threads"
    threads.mkdir()
    process = start(
        tmp_path,
        *("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", "hydra/launcher=joblib"),
        *("hydra.launcher.n_jobs=2", f"+callbacks.threads.folder={threads}"),
        "+callbacks.threads._target_=recorder.ThreadRecorder",
        PYTHONPATH=str(ROOT / "tests"),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    told, last = err.splitlines()
    assert told == "#0 lora.rank=0 failed: lora.rank=0: expected an integer >= 1"
    assert last.startswith("1 failed; go on with: python train.py -m")
    assert "hydra/launcher=joblib hydra.launcher.n_jobs=2 sweep.resume=" in last
    statuses = [row["status"] for row in read_summary(only_sweep(tmp_path))]
    assert statuses == ["finished", "finished", "failed"]
    cores = len(os.sched_getaffinity(0))
    assert [path.name for path in threads.iterdir()] == [str(max(1, cores // 2))]


def test_submitit_brings_results_and_failures_back(base_ckpt: Path, tmp_path: Path) -> None:
    """launcher=slurm with processes of this machine for Slurm's nodes."""
    arguments = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1", "launcher=submitit_local")
    process = start(tmp_path, "-m", *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "failed: lora.rank=0: lora.rank=0: expected an integer >= 1" in out
    assert err.startswith("1 failed; go on with: python train.py -m")
    rows = read_summary(only_sweep(tmp_path))
    assert [row["status"] for row in rows] == ["finished", "failed"]
