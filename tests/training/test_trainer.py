import pytest
import torch
from composed import QUICK, composed

from lora_mnist.config.run import Run
from lora_mnist.training import trainer


@pytest.mark.parametrize(("accelerator", "is_so"), [("auto", True), ("cpu", False)])
def test_a_gpu_that_is_found_computes_the_same_twice(tmp_path, monkeypatch, accelerator, is_so):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    quick = (*QUICK, f"trainer.accelerator={accelerator}")
    try:
        trainer.make_trainer(composed("train", "stage=pretrain", *quick), Run(tmp_path))
        assert torch.are_deterministic_algorithms_enabled() is is_so
    finally:
        torch.use_deterministic_algorithms(False)
