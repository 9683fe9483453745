"""Real signals to real sweeps."""

import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sweeping import FEW, GRID, only_sweep, read_summary, start, wait_for_results

from lora_mnist import interrupt
from lora_mnist.sweep import conduct


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


def test_a_single_run_tells_too(tmp_path: Path) -> None:
    """Inside the fit, where Lightning has its own answer to an interrupt."""
    process = start(tmp_path, "stage=pretrain", "logger=none")
    assert process.stderr
    lines = [process.stderr.readline()]
    assert "training images" in lines[0]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["interrupted by SIGINT"]


def test_what_swallows_a_signal_does_not_stop_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.handle_signals() as received:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        received.hold()
        signal.raise_signal(signal.SIGINT)
    assert received.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_engine_may_take_the_handlers_place(capsys: pytest.CaptureFixture[str]) -> None:
    """As Ray does in the process that starts it."""
    with pytest.raises(SystemExit) as ended, conduct():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"


def test_a_signal_leaves_no_module_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the summary, which needs some of what the jobs import, would fail in its turn."""
    source = (
        f"import os, time; os.kill(os.getpid(), {signal.SIGINT}); time.sleep(0.2); whole = True"
    )
    (tmp_path / "sluggish.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with interrupt.handle_signals() as received, pytest.raises(KeyboardInterrupt):
        import_module("sluggish")
        time.sleep(30)
    assert sys.modules["sluggish"].whole
    assert received.exit_code == 130
