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
from composed import FEW, SMALL, composed, small_adapter, small_base
from helpers.commands import ROOT, read_results

from lora_mnist.disk.predictions import read_predictions
from lora_mnist.project import Run
from lora_mnist.train import train


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


def in_two_processes(tmp_path, *overrides, crash="-1"):
    """The exit code of the first process, which may ``crash``, and what both wrote; none stays."""
    path = f"{ROOT}/tests:{ROOT}/src"
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    with out.open("w") as stdout, err.open("w") as stderr:
        group = subprocess.Popen(
            [sys.executable, "train.py", *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "CRASH": crash},
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        code = group.wait(150)
        end = time.monotonic() + 30
        while members(group.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert members(group.pid) == []
    finally:
        if members(group.pid):
            os.killpg(group.pid, signal.SIGKILL)
            group.wait()
    return code, out.read_text(), err.read_text()


def recorded(folder):
    images = [torch.load(path, weights_only=True) for path in sorted(folder.glob("seen/*"))]
    losses = []
    for path in folder.rglob("metrics.csv"):
        with path.open(newline="") as file:
            rows = [row["train/loss"] for row in csv.DictReader(file)]
        losses += [float(loss) for loss in rows if loss]
    return read_results(folder), images, losses


@pytest.mark.slow(40)
def test_two_processes_train_as_one(tmp_path):
    """The same images step by step, and the same outcome up to the order of summation.

    That holds though both end in between, as the first gets SIGTERM, and go on.
    The second process finds another class, other weights and another scale: the first decides.
    Two epochs of 342 nines; of 501 validation images none is counted twice.
    """
    small_base(tmp_path / "outputs")
    below = small_adapter(tmp_path / "outputs", "lora/below").parent
    replay = 40
    options = (
        *("stage=lora", *SMALL, *FEW, "data.val_size=501", "digit=9", f"adapter={below}"),
        *("trainer.max_steps=8", "data.batch_size=100", f"data.replay={replay}", "logger=csv"),
        *("trainer.log_every_n_steps=2", "callbacks.checkpoint.every_n_train_steps=1"),
        *("lora.scale=auto", f"paths.outputs={tmp_path}/outputs"),
        "+callbacks.recorder._target_=helpers.callbacks.Recorder",
    )
    for trainer in ("cpu", "ddp_sim"):
        (tmp_path / trainer / "seen").mkdir(parents=True)
    more = ("trainer=cpu", f"+callbacks.recorder.folder={tmp_path}/cpu/seen")
    train(composed("train", *options, *more), Run(tmp_path / "cpu"))
    options += ("trainer=ddp_sim", f"+callbacks.recorder.folder={tmp_path}/ddp_sim/seen")
    options += ("+callbacks.nudge._target_=helpers.callbacks.Nudge",)
    options += ("+callbacks.crash._target_=helpers.callbacks.Crash",)
    place, resume = f"hydra.run.dir={tmp_path}/ddp_sim", f"resume={tmp_path}/ddp_sim"
    code, _, err = in_two_processes(tmp_path, *options, place, crash="2:SIGTERM")
    assert code in (-signal.SIGTERM, 128 + signal.SIGTERM)  # the same to a shell
    assert "Traceback" not in err
    assert err.count("go on with: python train.py stage=lora") == 1
    code, out, err = in_two_processes(tmp_path, *options, resume)
    assert code == 0, err
    assert out.count("accuracy:") == 1
    alone, (steps,), losses = recorded(tmp_path / "cpu")
    together, shards, losses_together = recorded(tmp_path / "ddp_sim")
    assert len(shards[0]) == len(shards[1]) == 6
    for images, *parts in zip(steps[2:], *shards, strict=True):
        # Each process has every second image, and every second one of the replay after them.
        parts = [part.split([len(part) - replay // 2, replay // 2]) for part in parts]
        dealt = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*parts, strict=True)]
        assert torch.equal(torch.cat(dealt), images)
    for split in ("val", "test", "val_base", "test_base", "test_before"):
        assert together[split]["loss"] == pytest.approx(alone[split]["loss"], rel=1e-4)
        assert together[split]["images_per_class"] == alone[split]["images_per_class"]
        errors = [outcome[split]["errors_per_class"] for outcome in (together, alone)]
        # An image on the border between two classes may fall to the other side.
        assert sum(abs(a - b) for a, b in zip(*errors, strict=True)) <= 2
    digits = [str(number) for number in range(10)]
    alone_test, together_test = (
        read_predictions(tmp_path / name, digits) for name in ("cpu", "ddp_sim")
    )
    assert alone_test["label"].tolist() == together_test["label"].tolist()
    assert losses_together == pytest.approx(losses, rel=1e-4)
    assert together["dial"]["saved"] == alone["dial"]["saved"] > 0
