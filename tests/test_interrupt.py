"""Real signals to real sweeps."""

import signal
from pathlib import Path
from typing import Any

import pytest
from sweeping import FEW, GRID, only_sweep, read_summary, start, wait_for_results


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_is_summarised(
    cli: Any, base_ckpt: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "-m", *FEW, f"base_ckpt={base_ckpt}", *GRID)
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    sweep = only_sweep(tmp_path)
    assert err.splitlines() == [
        f"interrupted by {number.name}; go on with: python train.py -m {' '.join(FEW)} "
        f"base_ckpt={base_ckpt} {' '.join(GRID)} paths.outputs={tmp_path}/outputs "
        f"sweep.resume={sweep}"
    ]
    assert "best: python train.py" in out
    statuses = [row["status"] for row in read_summary(sweep)]
    assert 1 <= statuses.count("finished") < 6
    assert set(statuses) <= {"finished", "interrupted"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_joblib_can_be_interrupted(base_ckpt: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = (*FEW, f"base_ckpt={base_ckpt}", *GRID, "hydra/launcher=joblib")
    process = start(tmp_path, "-m", *arguments, "hydra.launcher.n_jobs=2")
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert len(err.splitlines()) == 1
    assert any(row["status"] == "finished" for row in read_summary(only_sweep(tmp_path)))
