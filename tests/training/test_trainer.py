import pytest
import torch
from composed import QUICK, composed, logged

from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError
from lora_mnist.training import trainer


def test_a_training_that_ends_before_its_steps_is_told(tmp_path):
    short = ("stage=pretrain", "+trainer.limit_train_batches=2", f"paths.outputs={tmp_path}")
    with logged("lora_mnist") as text, pytest.raises(TrainingError, match="expected more steps"):
        train(composed("train", *QUICK, *short), Run(tmp_path / "run"))
    assert "2 steps, fewer than trainer.max_steps=3; trainer.max_epochs=1" in text.getvalue()


@pytest.mark.parametrize(("accelerator", "is_so"), [("auto", True), ("cpu", False)])
def test_a_gpu_that_is_found_computes_the_same_twice(tmp_path, monkeypatch, accelerator, is_so):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    quick = (*QUICK, f"trainer.accelerator={accelerator}")
    try:
        trainer.make_trainer(composed("train", "stage=pretrain", *quick), Run(tmp_path))
        assert torch.are_deterministic_algorithms_enabled() is is_so
    finally:
        torch.use_deterministic_algorithms(False)
