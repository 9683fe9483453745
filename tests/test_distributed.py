"""One training in two processes, trainer=ddp_sim: what one process alone would do."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from composed import SMALL, small_base
from helpers.commands import ROOT, read_results, run_process
from torch import Tensor


def run_recorded(
    folder: Path, *overrides: str
) -> tuple[CompletedProcess[str], dict[str, Any], list[list[Tensor]]]:
    """A finished run, its results, and the images of each step in each of its processes."""
    seen = folder / "seen"
    seen.mkdir(parents=True)
    done = run_process(
        "train.py",
        *overrides,
        f"hydra.run.dir={folder}/run",
        "logger=csv",
        "+callbacks.recorder._target_=helpers.recorder.Recorder",
        f"+callbacks.recorder.folder={seen}",
        PYTHONPATH=f"{ROOT}/tests:{ROOT}/src",
    )
    assert done.returncode == 0, done.stderr
    images = [torch.load(path, weights_only=True) for path in sorted(seen.iterdir())]
    return done, read_results(folder / "run"), images


def train_losses(folder: Path) -> list[float]:
    with (folder / "run" / "csv" / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_two_processes_see_each_image_once(tmp_path: Path) -> None:
    """An epoch over the 5,949 nines, and a test that counts no image twice."""
    arguments = ("stage=pretrain", "trainer=ddp_sim", "digit=9", "data.batch_size=500")
    arguments = (*arguments, *SMALL[:1], "data.val_size=0", f"paths.outputs={tmp_path}/outputs")
    done, results, shards = run_recorded(tmp_path, *arguments, f"base_ckpt={tmp_path}/base.ckpt")
    assert len(shards) == 2
    images = torch.cat([batch for shard in shards for batch in shard])
    # 5,949 is odd: one image is drawn twice so that both processes take equally many steps.
    assert len(images) == 5_950
    assert len(images.unique(dim=0)) == 5_949
    assert sum(results["test"]["images_per_class"]) == 10_000
    assert results["steps"] == 12
    assert done.stdout.count("accuracy:") == 1


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same images step by step, and the same outcome but for the order of summation."""
    small_base(tmp_path / "outputs")
    replay = 400
    runs = []
    for trainer in ("cpu", "ddp_sim"):
        arguments = ("stage=lora", f"trainer={trainer}", "trainer.max_steps=16", *SMALL[:1])
        arguments = (*arguments, "data.batch_size=1000", f"data.replay={replay}")
        arguments = (*arguments, "trainer.log_every_n_steps=8", f"paths.outputs={tmp_path}/outputs")
        runs.append(run_recorded(tmp_path / trainer, *arguments))
    (_, alone, (steps,)), (_, together, shards) = runs
    assert len(steps) == len(shards[0]) == len(shards[1]) == 16
    for images, *parts in zip(steps, *shards, strict=True):
        # Of the images and of the replay behind them, each process has every second one.
        parts = [part.split([len(part) - replay // 2, replay // 2]) for part in parts]
        dealt = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*parts, strict=True)]
        assert torch.equal(torch.cat(dealt), images)
    for split in ("val", "test"):
        assert together[split]["loss"] == pytest.approx(alone[split]["loss"], rel=1e-4)
        errors = [outcome[split]["errors_per_class"] for outcome in (together, alone)]
        # An image on the border between two classes may fall to the other side.
        assert sum(abs(a - b) for a, b in zip(*errors, strict=True)) <= 4
    losses = [train_losses(tmp_path / trainer) for trainer in ("cpu", "ddp_sim")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# --- no process is left behind -------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A long training in two processes, in a process group of its own."""
    options = [
        "stage=pretrain",
        "trainer=ddp_sim",
        "trainer.max_epochs=1000",
        "logger=none",
        "figures=false",
        "callbacks.checkpoint.seconds=1",
        f"paths.outputs={tmp_path}",
        SMALL[0],
    ]
    process = subprocess.Popen(
        [sys.executable, "train.py", *options, f"hydra.run.dir={tmp_path}/run"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("w"),
        start_new_session=True,
    )
    yield process
    if members(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def members(group: int) -> list[int]:
    """The living processes of a process group; a zombie lives no more."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Any, seconds: float) -> bool:
    """Whether ``condition()`` came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def wait_until_it_trains(group: subprocess.Popen[bytes], tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert wait_for(lambda: last.exists() or group.poll() is not None, 150)
    assert group.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["all", "the first"])
def test_a_signal_ends_both_processes(
    group: subprocess.Popen[bytes], tmp_path: Path, whom: str
) -> None:
    """To the whole group, as Ctrl+C and most cluster managers send it, or to the first alone."""
    wait_until_it_trains(group, tmp_path)
    assert len(members(group.pid)) == 2
    (os.killpg if whom == "all" else os.kill)(group.pid, signal.SIGTERM)
    assert wait_for(lambda: not members(group.pid), 30)
    assert group.wait() in (-signal.SIGTERM, 128 + signal.SIGTERM)  # the same to a shell
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.slow
def test_a_killed_parent_leaves_no_child(group: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Its connection is cut, at the next step."""
    wait_until_it_trains(group, tmp_path)
    group.kill()
    group.wait()
    assert wait_for(lambda: not members(group.pid), 15)
