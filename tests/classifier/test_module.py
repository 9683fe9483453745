import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora, lora_parameters
from lora_mnist.classifier.averaging import TrainedAverage
from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageDataModule
from lora_mnist.lora.base_state import base_state_dict, changed_tensors

DATA = ImageDataModule("toy", ["cat", "dog", "owl"], 1, replay=3)


def trainer(tmp_path, **settings):
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings |= {"default_root_dir": tmp_path, **dict.fromkeys(parts, False)}
    return Trainer(accelerator="cpu", **settings)


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 2, (50,), generator=generator)  # no image of class 2
    return DataLoader(TensorDataset(x, y), batch_size=16)


@pytest.mark.parametrize(("init", "more"), [("gaussian", set()), ("pissa", {"start_A", "start_B"})])
def test_weight_averaging_keeps_the_mean_of_the_adapter(tiny, loader, tmp_path, init, more):
    class Recorded(ClassifierModule):
        def on_train_batch_end(self, *_):
            seen.append([p.detach().clone() for p in lora_parameters(self.net)])

    seen = []
    before = copy.deepcopy(tiny.state_dict())
    module = Recorded(add_lora(tiny, init=init), DATA, lr=0.1)
    fit = trainer(tmp_path, max_steps=3, callbacks=TrainedAverage())
    fit.fit(module, loader)
    for parameter, steps in zip(lora_parameters(tiny), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(parameter, torch.stack(steps).mean(dim=0))
    assert changed_tensors(before, base_state_dict(tiny)) == []

    fit.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    names = {name.rsplit(".", 1)[1] for name in state if name.startswith("net.")}
    assert names == {"lora_A", "lora_B"} | more


def test_a_checkpoint_is_validated_with_its_average(tiny, loader, tmp_path):
    """Its weights are those to go on from; the callback's state has the average."""

    class Recorded(ClassifierModule):
        def on_train_batch_end(self, *_):
            seen.append(self.net.linear1.weight.detach().clone())

    seen = []
    module = Recorded(tiny, DATA, lr=0.1)
    each = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit = Trainer(accelerator="cpu", max_steps=3, callbacks=[TrainedAverage(), each], logger=False)
    fit.fit(module, loader)
    path = tmp_path / "step=2.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["net.linear1.weight"], seen[1])
    fit.validate(module, loader, ckpt_path=path, weights_only=True)
    torch.testing.assert_close(tiny.linear1.weight, torch.stack(seen[:2]).mean(dim=0))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_loss_is_that_of_the_last_batch_of_a_step(tiny, loader, tmp_path, accumulate):
    class Recorded(ClassifierModule):
        def training_step(self, batch, batch_idx):
            losses.append(loss := super().training_step(batch, batch_idx))
            return loss

    losses = []
    settings = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": accumulate}
    fit = trainer(tmp_path, **settings)
    fit.fit(Recorded(tiny, DATA, lr=0.1), loader)
    assert fit.callback_metrics["train/loss"].item() == losses[-1].item()


@pytest.mark.parametrize("kind", ["adapter", "network"])
@pytest.mark.parametrize("loss", [{"margin": 1.0}, {"distill": 1.0, "target_weight": 0.5}])
def test_all_is_computed_where_the_batch_is(tiny, tmp_path, kind, loss):
    """Training with replay, and validation, on a device that refuses to mix with the CPU."""
    base = copy.deepcopy(tiny.state_dict())
    if kind == "adapter":
        add_lora(tiny)
    tensors = {name: tensor.to("meta") for name, tensor in base.items()}
    base_tensors = None if kind == "adapter" else tensors
    module = ClassifierModule(tiny, DATA, loss=Loss(**loss), base_tensors=base_tensors).to("meta")
    module.trainer = trainer(tmp_path)
    batch = torch.empty(8, 6, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    module.training_step(batch, 0).backward()
    gradients = [p.grad for p in tiny.parameters() if p.requires_grad]
    assert {gradient.device.type for gradient in gradients} == {"meta"}
    module.validation_step(batch, 0)
    assert module.base_logits["val"][0].device.type == "meta"
    assert module.evaluations["val"].adapted[0].device.type == "meta"
