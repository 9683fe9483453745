import pytest
from composed import QUICK, composed, logged
from helpers.repairs import QUIET, changed

from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError


def test_a_training_that_ends_before_its_steps_is_logged(tmp_path):
    short = ("stage=pretrain", "+trainer.limit_train_batches=2", f"paths.outputs={tmp_path}")
    with logged("lora_mnist") as text, pytest.raises(TrainingError, match="expected more steps"):
        train(composed("train", *QUICK, *short), Run(tmp_path / "run"))
    assert "2 steps, fewer than trainer.max_steps=3; trainer.max_epochs=1" in text.getvalue()


def test_a_network_that_its_maker_froze_is_repaired(go):
    usual = go("alone", *QUIET)
    base = f"base_ckpt={usual.parents[1]}/base/mnist.ckpt"
    assert not changed(usual, go("frozen", *QUIET, "net._target_=helpers.nets.FrozenMLP", base))
