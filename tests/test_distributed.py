"""One training in two processes, trainer=ddp_sim: what one process alone would do."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from composed import FEW, SMALL, composed, small_base
from helpers.commands import ROOT, read_results, run_process

from lora_mnist.run import Run
from lora_mnist.train import train


def recorded(folder):
    images = [torch.load(path, weights_only=True) for path in sorted(folder.glob("seen/*"))]
    with next(folder.rglob("metrics.csv")).open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return read_results(folder), images, losses


@pytest.mark.slow(25)
def test_two_processes_train_as_one(tmp_path):
    """The same images step by step, and the same outcome up to the order of summation.

    Two epochs of 342 nines; of 501 validation images none is counted twice.
    """
    small_base(tmp_path / "outputs")
    replay = 40
    options = ("stage=lora", *SMALL, *FEW, "data.val_size=501", "trainer.max_steps=8", "logger=csv")
    options += ("digit=9", "data.batch_size=100", f"data.replay={replay}", "optimizer.lr=0.01")
    options += ("lora.scale=auto", "trainer.log_every_n_steps=2")
    options += (f"paths.outputs={tmp_path}/outputs",)
    options += ("+callbacks.recorder._target_=helpers.callbacks.Recorder",)
    for trainer in ("cpu", "ddp_sim"):
        (tmp_path / trainer / "seen").mkdir(parents=True)
    more = ("trainer=cpu", f"+callbacks.recorder.folder={tmp_path}/cpu/seen")
    train(composed("train", *options, *more), Run(tmp_path / "cpu"))
    more = ("trainer=ddp_sim", f"+callbacks.recorder.folder={tmp_path}/ddp_sim/seen")
    done = run_process(
        "train.py",
        *(*options, *more, f"hydra.run.dir={tmp_path}/ddp_sim"),
        PYTHONPATH=f"{ROOT}/tests:{ROOT}/src",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy:") == 1
    alone, (steps,), losses = recorded(tmp_path / "cpu")
    together, shards, losses_together = recorded(tmp_path / "ddp_sim")
    assert len(steps) == len(shards[0]) == len(shards[1]) == 8
    for images, *parts in zip(steps, *shards, strict=True):
        # Each process has every second image, and every second one of the replay after them.
        parts = [part.split([len(part) - replay // 2, replay // 2]) for part in parts]
        dealt = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*parts, strict=True)]
        assert torch.equal(torch.cat(dealt), images)
    for split in ("val", "test", "val_base", "test_base"):
        assert together[split]["loss"] == pytest.approx(alone[split]["loss"], rel=1e-4)
        assert together[split]["images_per_class"] == alone[split]["images_per_class"]
        errors = [outcome[split]["errors_per_class"] for outcome in (together, alone)]
        # An image on the border between two classes may fall to the other side.
        assert sum(abs(a - b) for a, b in zip(*errors, strict=True)) <= 2
    labels = []
    for name in ("cpu", "ddp_sim"):
        with (tmp_path / name / "predictions.csv").open(newline="") as file:
            labels.append([row["label"] for row in csv.DictReader(file)])
    assert labels[0] == labels[1]
    assert losses_together == pytest.approx(losses, rel=1e-4)
    assert together["dial"]["saved"] == alone["dial"]["saved"] > 0


def members(group):
    """The living processes of a process group, without zombies."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            living.append(int(stat.parent.name))
    return living


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow(20)
def test_no_process_stays(tmp_path):
    """After SIGTERM to the whole group, as Ctrl+C and most cluster managers send their signal."""
    options = [*FEW, SMALL[0], "figures=false", "logger=none", "stage=pretrain", "trainer=ddp_sim"]
    options += ["trainer.max_epochs=1000", "callbacks.checkpoint.train_time_interval.seconds=0"]
    options += [f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run"]
    last, stderr = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "stderr"
    group = subprocess.Popen(
        [sys.executable, "train.py", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        stdout=subprocess.DEVNULL,
        stderr=stderr.open("w"),
        start_new_session=True,
    )
    try:
        assert wait_for(lambda: last.exists() or group.poll() is not None, 150)
        assert len(members(group.pid)) == 2
        os.killpg(group.pid, signal.SIGTERM)
        assert wait_for(lambda: not members(group.pid), 30)
    finally:
        if members(group.pid):
            os.killpg(group.pid, signal.SIGKILL)
        code = group.wait()
    assert code in (-signal.SIGTERM, 128 + signal.SIGTERM)  # the same to a shell
    assert "Traceback" not in stderr.read_text()
    assert stderr.read_text().count("go on with: python train.py ") == 1
