"""One training in two processes, trainer=ddp_sim: what one process alone would do."""

import csv

import pytest
import torch
from composed import FEW, SMALL, composed, small_base
from helpers.commands import ROOT, read_results, run_process

from lora_mnist.command import Run
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
    options += (
        "digit=9",
        "batches.batch_size=100",
        f"batches.replay={replay}",
        "optimizer.lr=0.01",
    )
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
    assert together["scale"] == alone["scale"] > 0
