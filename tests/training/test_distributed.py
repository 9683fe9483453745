"""One training in two processes, trainer=ddp_sim: what one process alone would do."""

import os
from unittest.mock import patch

import pytest
import torch
from composed import FEW, SMALL, composed
from helpers.commands import read_csv, read_results
from helpers.nets import batches
from lightning.pytorch import Trainer

from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError
from lora_mnist.training.module import ClassifierModule


def logged_in(folder, key):
    """The values of a curve."""
    (metrics,) = folder.rglob("metrics.csv")
    return [float(row[key]) for row in read_csv(metrics) if row[key]]


#: How far curves may differ: an image on the border between two classes may change sides.
LOGGED = {"train/loss": 0, "val/loss": 0, "val/accuracy": 2 / 501}
LOGGED |= dict.fromkeys(("val/errors", "val/errors_of_target", "val/false_positives_of_target"), 2)


@pytest.mark.slow
def test_two_processes_train_as_one(cli, outputs, tmp_path):
    """Up to the order of summation; of 501 validation images each is counted once."""
    options = (
        *("stage=lora", "digit=9", "batches.batch_size=100", "batches.replay=40"),
        *("trainer.max_steps=10", "optimizer.lr=0.01", "lora.scale=auto", "data.val_size=501"),
        "lora.offset=auto",
        *(FEW[0], *SMALL, "logger=csv", "trainer.log_every_n_steps=2", "data.eval_batch_size=250"),
    )
    alone = train(composed("train", *options, f"paths.outputs={outputs}"), Run(tmp_path / "one"))
    with patch.dict(os.environ):  # in which Lightning names the first process to the second
        done = cli("train.py", *options, "trainer=ddp_sim", f"hydra.run.dir={tmp_path}/two").ok()
        assert torch.distributed.get_world_size() == 2
        torch.distributed.destroy_process_group()
    assert done.out.count("accuracy:") == 1
    together = read_results(tmp_path / "two")
    for key, difference in LOGGED.items():
        one, two = (logged_in(tmp_path / run, key) for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4, abs=difference)
    for split in ("val", "test", "val_base", "test_base"):
        one, two = alone[split], together[split]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["images_per_class"] == one["images_per_class"]
        assert abs(two["errors"] - one["errors"]) <= 2
    assert together["point"]["scale"] == alone["point"]["scale"] > 0
    assert together["point"]["offset"] == pytest.approx(alone["point"]["offset"], abs=0.25) != 0


def make_trainer(first):
    """A Trainer of a process, where the first one of several has chosen this by its rounding."""
    trainer = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)

    def broadcast(value, src=0):
        return {**value, **first} if isinstance(value, dict) else first

    trainer.strategy.broadcast = broadcast
    return trainer


@pytest.mark.parametrize("first", [{"target": ["dog"]}, {"optimizer.lr": 0.2}])
def test_training_is_refused_where_the_first_process_has_chosen_otherwise(tiny, first):
    """Each would train, without a word, what it has chosen itself."""
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    module = ClassifierModule(tiny, optimizer, classes=["cat", "dog", "owl"], targets=[0])
    (key,) = first
    with pytest.raises(UserError, match=rf"^{key}: process 0 has chosen .*; expected a value"):
        make_trainer(first).fit(module, batches())
