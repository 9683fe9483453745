"""One training in two processes, trainer=ddp_sim: what one process alone would do."""

import csv
import os
from unittest.mock import patch

import pytest
import torch
from composed import FEW, SMALL, composed
from helpers.commands import read_results

from lora_mnist.command import Run
from lora_mnist.train import train


def losses_of(folder):
    """Of each second step."""
    with next(folder.rglob("metrics.csv")).open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow
def test_two_processes_train_as_one(cli, outputs, tmp_path):
    """Up to the order of summation; of 501 validation images none is counted twice."""
    options = (
        *("stage=lora", "digit=9", "batches.batch_size=100", "batches.replay=40"),
        *("trainer.max_steps=10", "optimizer.lr=0.01", "lora.scale=auto", "data.val_size=501"),
        *(FEW[0], *SMALL, "logger=csv", "trainer.log_every_n_steps=2"),
    )
    alone = train(composed("train", *options, f"paths.outputs={outputs}"), Run(tmp_path / "one"))
    with patch.dict(os.environ):  # in which Lightning names the first process to the second
        done = cli("train.py", *options, "trainer=ddp_sim", f"hydra.run.dir={tmp_path}/two").ok()
        assert torch.distributed.get_world_size() == 2
        torch.distributed.destroy_process_group()
    assert done.out.count("accuracy:") == 1
    together = read_results(tmp_path / "two")
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    for split in ("val", "test", "val_base", "test_base"):
        one, two = alone[split], together[split]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["images_per_class"] == one["images_per_class"]
        # An image on the border between two classes may fall to the other side.
        assert abs(two["errors"] - one["errors"]) <= 2
    assert together["scale"] == alone["scale"] > 0
