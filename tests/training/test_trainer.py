import copy
from types import SimpleNamespace

import pytest
import torch
from composed import QUICK, composed, logged

from lora_mnist import CNN, add_lora
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError
from lora_mnist.training import trainer


def test_what_a_step_in_bfloat16_takes_moves_nothing():
    torch.manual_seed(0)
    net = add_lora(CNN(), dropout=0.5).train()
    batch = torch.randn(4, 1, 28, 28), torch.arange(4)
    net(batch[0]).sum().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.requires_grad]
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert trainer.share_in_bfloat16(net, batch) > 0
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    for grad, p in zip(grads, (p for p in net.parameters() if p.requires_grad), strict=True):
        assert torch.equal(p.grad, grad)


def test_a_training_that_ends_before_its_steps_is_told(tmp_path):
    short = ("stage=pretrain", "+trainer.limit_train_batches=2", f"paths.outputs={tmp_path}")
    with logged("lora_mnist") as text, pytest.raises(TrainingError, match="expected more steps"):
        train(composed("train", *QUICK, *short), Run(tmp_path / "run"))
    assert "2 steps, fewer than trainer.max_steps=3; trainer.max_epochs=1" in text.getvalue()


@pytest.mark.parametrize(
    ("steps", "precision", "share", "is_advised"),
    [
        (10**9, "32-true", 0.5, True),
        (10**9, "32-true", 0.9, False),
        (10**9, "bf16-mixed", 0.5, False),
        (12, "32-true", 0.5, False),
    ],
)
def test_a_long_repair_is_told_of_a_faster_precision(
    monkeypatch, steps, precision, share, is_advised
):
    monkeypatch.setattr(trainer, "share_in_bfloat16", lambda *_: share)
    plan = SimpleNamespace(batch_size=1, replay=0)
    data = SimpleNamespace(plan=plan, images=SimpleNamespace(val=[]))
    of_lightning = SimpleNamespace(
        **{"precision": precision, "datamodule": data, "estimated_stepping_batches": steps},
        **{"accumulate_grad_batches": 1, "val_check_batch": None},
    )
    time_of_all, outputs = trainer.TimeOfAll(1, 0), {"loss": torch.zeros(())}
    with logged("lora_mnist.training.trainer") as text:
        for number in range(11):
            module = SimpleNamespace(net=None)
            time_of_all.on_train_batch_end(of_lightning, module, outputs, None, number)
    assert ("trainer.precision=bf16-mixed would take 50%" in text.getvalue()) is is_advised


@pytest.mark.parametrize(("accelerator", "is_so"), [("auto", True), ("cpu", False)])
def test_a_gpu_that_is_found_computes_the_same_twice(tmp_path, monkeypatch, accelerator, is_so):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    quick = (*QUICK, f"trainer.accelerator={accelerator}")
    try:
        trainer.make_trainer(composed("train", "stage=pretrain", *quick), Run(tmp_path))
        assert torch.are_deterministic_algorithms_enabled() is is_so
    finally:
        torch.use_deterministic_algorithms(False)
