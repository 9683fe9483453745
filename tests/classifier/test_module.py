import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, randomize
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora, lora_parameters
from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.metrics import Evaluation
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.lora import base_state_dict, changed_tensors

ADAM = torch.optim.Adam


def make(net: nn.Module, **settings: Any) -> ClassifierModule:
    return ClassifierModule(net, 3, optimizer=ADAM, lr=0.1, **settings)


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **settings,
    )


@pytest.fixture
def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 2, (50,), generator=generator)  # no image of class 2
    return DataLoader(TensorDataset(x, y), batch_size=16)


@pytest.mark.parametrize("trained", ["adapter", "network", None])
def test_a_trained_network_is_tested_beside_its_base(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, trained: str | None
) -> None:
    """A network that was not trained has no base."""
    x, y = loader.dataset.tensors
    before, base = tiny(x).detach(), copy.deepcopy(tiny.state_dict())
    if trained == "adapter":
        randomize(add_lora(tiny))
    elif trained == "network":
        nn.init.normal_(tiny.linear2.weight)
    evaluation = Evaluation(3)
    evaluation.update(tiny(x), y, before if trained else None)
    expected = evaluation.conclude("test")
    for outcome in expected.values():
        outcome["loss"] = pytest.approx(outcome["loss"])
    module = make(tiny, base_tensors=base if trained == "network" else None)
    fit = trainer(tmp_path)
    fit.test(module, loader, verbose=False)
    assert module.outcomes == expected
    for name in ("accuracy", "repaired", "broken") if trained else ("accuracy",):
        assert fit.logged_metrics[f"test/{name}"] == pytest.approx(expected["test"][name])
        assert expected["test"][name] > 0
    for name, tensor in evaluation.predictions.items():
        torch.testing.assert_close(module.predictions[name], tensor)


def names(state: dict[str, Any]) -> set[str]:
    """The names of the network's tensors in a checkpoint, without their layers."""
    return {key.rsplit(".", 1)[1] for key in state if key.startswith("net.")}


@pytest.mark.parametrize(("init", "more"), [("gaussian", set()), ("pissa", {"start_A", "start_B"})])
def test_only_lora_reaches_optimizer_and_checkpoint(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, init: str, more: set[str]
) -> None:
    module = make(add_lora(tiny, init=init), hyperparameters={"stage": "test", "seed": 0})
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(module, loader)
    (group,) = fit.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in lora_parameters(tiny)}
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert names(checkpoint["state_dict"]) == {"lora_A", "lora_B"} | more
    assert checkpoint["hyper_parameters"] == {"stage": "test", "seed": 0}

    torch.manual_seed(1)
    again = make(add_lora(TinyNet(), init=init))
    trainer(tmp_path, max_steps=4).fit(again, loader, ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4


def test_weight_averaging_keeps_the_mean_of_the_adapter(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    class Recorded(ClassifierModule):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append([p.detach().clone() for p in lora_parameters(self.net)])

    seen: list[list[torch.Tensor]] = []
    before = copy.deepcopy(tiny.state_dict())
    module = Recorded(add_lora(tiny), 3, optimizer=ADAM, lr=0.1)
    fit = trainer(tmp_path, max_steps=3, callbacks=WeightAveraging(use_buffers=False))
    fit.fit(module, loader)
    for parameter, steps in zip(lora_parameters(tiny), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(parameter, torch.stack(steps).mean(dim=0))
    assert changed_tensors(before, base_state_dict(tiny)) == []

    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert names(checkpoint[key]) == {"lora_A", "lora_B"}


def test_lora_plus_has_a_learning_rate_for_lora_b(tiny: TinyNet) -> None:
    module = ClassifierModule(add_lora(tiny), 3, lr=0.25, lr_ratio=8.0)
    rates = [group["lr"] for group in module.configure_optimizers().param_groups]
    assert rates == [0.25, 2.0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_loss_is_the_mean_over_all_batches_of_the_steps(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, accumulate: int
) -> None:
    class Recorded(ClassifierModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            losses.append(loss := super().training_step(batch, batch_idx))
            return loss

    losses: list[torch.Tensor] = []
    settings = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": accumulate}
    fit = trainer(tmp_path, **settings)
    fit.fit(Recorded(tiny, 3, optimizer=ADAM, lr=0.1), loader)
    window = torch.stack(losses[-2 * accumulate :])
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(window.mean().item())


def test_the_step_of_the_last_validation(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = make(tiny)
    assert module.validated_at is None
    fit = trainer(tmp_path, max_steps=4, num_sanity_val_steps=2)
    fit.fit(module, loader, loader)
    assert module.validated_at == 4
    assert list(module.outcomes) == ["val"]


@pytest.mark.parametrize("kind", ["adapter", "network"])
@pytest.mark.parametrize("loss", [{"fit": "hinge"}, {"distill": 1.0, "target_weight": 0.5}])
def test_all_is_computed_where_the_batch_is(
    tiny: TinyNet, tmp_path: Path, kind: str, loss: dict[str, Any]
) -> None:
    """Training with replay, and validation, on a device that refuses to mix with the CPU."""
    base = copy.deepcopy(tiny.state_dict())
    if kind == "adapter":
        add_lora(tiny)
    tensors = {name: tensor.to("meta") for name, tensor in base.items()}
    settings = {"base_tensors": None if kind == "adapter" else tensors, "replay": 3}
    module = make(tiny, loss=Loss(**loss), **settings).to("meta")
    module.trainer = trainer(tmp_path)
    batch = torch.empty(8, 6, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    module.training_step(batch, 0).backward()
    gradients = [p.grad for p in tiny.parameters() if p.requires_grad]
    assert {gradient.device.type for gradient in gradients} == {"meta"}
    module.validation_step(batch, 0)
    assert module.base_logits["val"][0].device.type == "meta"
    assert module.evaluations["val"].adapted[0].device.type == "meta"
