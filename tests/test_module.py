import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora, lora_parameters
from lora_mnist.adapter import changed_tensors
from lora_mnist.lora import base_state_dict
from lora_mnist.loss import Loss
from lora_mnist.module import ClassifierModule

PLAIN = Loss(None, "cross_entropy", 1.0, 0.0, "replay", 1.0, None)
ADAM = partial(torch.optim.Adam, lr=0.1)


def make(net: nn.Module) -> ClassifierModule:
    return ClassifierModule(net, PLAIN, ADAM, 3, {"stage": "test", "seed": 0})


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = {"enable_checkpointing": False, "default_root_dir": tmp_path}
    return Trainer(accelerator="cpu", **quiet, **checkpoints, **settings)


@pytest.fixture
def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 2, (50,), generator=generator)  # no image of class 2
    return DataLoader(TensorDataset(x, y), batch_size=16)


def test_counts_equal_those_of_a_plain_loop(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = make(tiny)
    (logged,) = trainer(tmp_path).test(module, loader, verbose=False)
    images, errors, loss_sum = [0, 0, 0], [0, 0, 0], 0.0
    for x, y in zip(*loader.dataset.tensors, strict=True):
        logits = tiny(x[None])
        images[y] += 1
        errors[y] += int(logits.argmax() != y)
        loss_sum += nn.functional.cross_entropy(logits, y[None]).item()
    outcome = module.outcomes["test"]
    assert outcome["errors_per_class"] == errors
    assert outcome["images_per_class"] == images
    assert outcome["errors"] == sum(errors)
    assert outcome["accuracy"] == (50 - sum(errors)) / 50
    assert outcome["loss"] == pytest.approx(loss_sum / 50, rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx(outcome["accuracy"])
    for c in range(3):
        assert logged[f"test/errors_of_class/{c}"] == errors[c]
    assert logged["test/accuracy_of_class/0"] == pytest.approx(1 - errors[0] / images[0])
    assert "test_base" not in module.outcomes


def test_tests_the_adapter_and_its_base(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    before = make(tiny)
    trainer(tmp_path).test(before, loader, verbose=False)
    add_lora(tiny)
    for parameter in lora_parameters(tiny):
        nn.init.normal_(parameter)
    after = make(tiny)
    trainer(tmp_path).test(after, loader, verbose=False)
    assert after.outcomes["test_base"] == before.outcomes["test"]
    assert after.outcomes["test"] != before.outcomes["test"]


@pytest.mark.parametrize("adapted", [True, False])
def test_repaired_and_broken_equal_those_of_a_plain_loop(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, adapted: bool
) -> None:
    x, y = loader.dataset.tensors
    before = tiny(x).argmax(dim=1)
    base = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    if adapted:
        add_lora(tiny)
    trained = lora_parameters(tiny) if adapted else tiny.parameters()
    for parameter in trained:
        nn.init.normal_(parameter)
    after = tiny(x).argmax(dim=1)
    reference = None if adapted else base
    module = ClassifierModule(tiny, PLAIN, ADAM, 3, {}, base_tensors=reference)
    (logged,) = trainer(tmp_path).test(module, loader, verbose=False)
    outcome = module.outcomes["test"]
    assert list(outcome)[:2] == ["repaired", "broken"]
    for name, first, then in (("repaired", False, True), ("broken", True, False)):
        per_class = [0, 0, 0]
        for b, a, label in zip(before, after, y, strict=True):
            per_class[label] += bool((b == label) == first and (a == label) == then)
        assert outcome[f"{name}_per_class"] == per_class
        assert outcome[name] == sum(per_class) > 0
        assert logged[f"test/{name}"] == sum(per_class)
    change = outcome["errors"] - module.outcomes["test_base"]["errors"]
    assert change == outcome["broken"] - outcome["repaired"]


def test_only_lora_reaches_optimizer_and_checkpoint(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = make(add_lora(tiny))
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(module, loader)
    (group,) = fit.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in lora_parameters(tiny)}
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {key.rsplit(".", 1)[1] for key in checkpoint["state_dict"]} == {"lora_A", "lora_B"}
    assert checkpoint["hyper_parameters"] == {"stage": "test", "seed": 0}

    torch.manual_seed(1)
    again = make(add_lora(TinyNet()))
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
    module = Recorded(add_lora(tiny), PLAIN, ADAM, 3, {})
    fit = trainer(tmp_path, max_steps=3, callbacks=WeightAveraging(use_buffers=False))
    fit.fit(module, loader)
    for parameter, steps in zip(lora_parameters(tiny), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(parameter, torch.stack(steps).mean(dim=0))
    assert changed_tensors(before, base_state_dict(tiny)) == []

    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert {name.rsplit(".", 1)[1] for name in checkpoint[key]} == {"lora_A", "lora_B"}
    again = make(add_lora(TinyNet()))
    more = trainer(tmp_path, max_steps=4, callbacks=WeightAveraging(use_buffers=False))
    more.fit(again, loader, ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4


def test_lora_plus_speeds_up_lora_b(tiny: TinyNet) -> None:
    """One step of plain gradient descent moves lora_B 8 times as far, and lora_A as before."""
    moves = []
    for lr_ratio in (1, 8.0):
        net = add_lora(copy.deepcopy(tiny), init="kaiming")
        sgd = partial(torch.optim.SGD, lr=0.25)
        torch.manual_seed(0)
        for parameter in lora_parameters(net):
            nn.init.normal_(parameter)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer = ClassifierModule(net, nn.MSELoss(), sgd, 3, {}, lr_ratio).configure_optimizers()
        net(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        moves.append({name: p - before[name] for name, p in net.named_parameters()})
    for name, move in moves[0].items():
        factor = 8 if name.endswith("lora_B") else 1
        torch.testing.assert_close(moves[1][name], move * factor)
    assert sum(bool(move.any()) for move in moves[0].values()) == 4


def test_a_checkpoint_keeps_the_start_of_pissa(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(make(add_lora(tiny, init="pissa")), loader)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    sides = {"lora_A", "lora_B", "start_A", "start_B"}
    assert {key.rsplit(".", 1)[1] for key in kept} == sides


def test_train_loss_is_the_mean_since_the_last_log(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    class Recorded(ClassifierModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            logged.append(self.trainer.callback_metrics.get("train/loss"))
            return loss

    losses: list[float] = []
    logged: list[Any] = []
    module = Recorded(tiny, PLAIN, ADAM, 3, {})
    fit = trainer(tmp_path, max_steps=8, log_every_n_steps=2)
    fit.fit(module, loader)
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(sum(losses[6:]) / 2)
    assert logged[4].item() == pytest.approx(sum(losses[2:4]) / 2)
