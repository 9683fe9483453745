import copy
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora, lora_parameters
from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.metrics import Evaluation
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.errors import TrainingError
from lora_mnist.lora import base_state_dict, changed_tensors

ADAM = torch.optim.Adam


def make(net: nn.Module, **settings: Any) -> ClassifierModule:
    return ClassifierModule(net, 3, optimizer=ADAM, lr=0.1, **settings)


def net_tensors(state: dict[str, Any]) -> set[str]:
    """What the network's tensors in a checkpoint are called, without their layers."""
    return {key.rsplit(".", 1)[1] for key in state if key.startswith("net.")}


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = {"enable_checkpointing": False, "default_root_dir": tmp_path}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **checkpoints, **settings})


class Recorder(DummyLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics
        self.counts.update(metrics.keys())


@pytest.fixture
def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    y = torch.randint(0, 2, (50,), generator=generator)  # no image of class 2
    return DataLoader(TensorDataset(x, y), batch_size=16)


def test_a_network_alone_is_tested_without_a_base(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module, logger = make(tiny), Recorder()
    trainer(tmp_path, logger=logger).test(module, loader, verbose=False)
    x, y = loader.dataset.tensors
    evaluation = Evaluation(3)
    evaluation.update(tiny(x), y)
    (expected,) = evaluation.conclude("test").values()
    assert module.outcomes == {"test": {**expected, "loss": pytest.approx(expected["loss"])}}
    assert logger.metrics["test/accuracy"] == pytest.approx(expected["accuracy"])


@pytest.mark.parametrize("adapted", [True, False])
def test_what_was_trained_is_tested_beside_its_base(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, adapted: bool
) -> None:
    """With an adapter, or fine-tuned itself."""
    x, y = loader.dataset.tensors
    before = tiny(x).detach()
    base = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    if adapted:
        add_lora(tiny)
    for parameter in lora_parameters(tiny) if adapted else tiny.parameters():
        nn.init.normal_(parameter)
    evaluation = Evaluation(3)
    evaluation.update(tiny(x), y, before)
    expected = evaluation.conclude("test")
    for outcome in expected.values():
        outcome["loss"] = pytest.approx(outcome["loss"])
    module, logger = make(tiny, base_tensors=None if adapted else base), Recorder()
    assert torch.equal(module.base(x), before)
    assert not module.base(x).requires_grad
    trainer(tmp_path, logger=logger).test(module, loader, verbose=False)
    assert module.outcomes == expected
    for name in ("repaired", "broken"):
        assert logger.metrics[f"test/{name}"] == expected["test"][name] > 0
    for name in ("label", "base", "adapted"):
        assert torch.equal(module.predictions[name], evaluation.predictions[name])


@pytest.mark.parametrize(("init", "kept"), [("gaussian", set()), ("pissa", {"start_A", "start_B"})])
def test_only_lora_reaches_optimizer_and_checkpoint(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, init: str, kept: set[str]
) -> None:
    module = make(add_lora(tiny, init=init), hyperparameters={"stage": "test", "seed": 0})
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(module, loader)
    (group,) = fit.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in lora_parameters(tiny)}
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert net_tensors(checkpoint["state_dict"]) == {"lora_A", "lora_B"} | kept
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
        assert net_tensors(checkpoint[key]) == {"lora_A", "lora_B"}
    again = make(add_lora(TinyNet()))
    more = trainer(tmp_path, max_steps=4, callbacks=WeightAveraging(use_buffers=False))
    more.fit(again, loader, ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4


def test_lora_plus_has_a_learning_rate_for_lora_b(tiny: TinyNet) -> None:
    module = ClassifierModule(add_lora(tiny), 3, lr=0.25, lr_ratio=8.0)
    rates = [group["lr"] for group in module.configure_optimizers().param_groups]
    assert rates == [0.25, 2.0]


def test_needs_nothing_but_a_network(loader: DataLoader[Any], tmp_path: Path) -> None:
    """Cross-entropy, Adam at 1e-3 and a constant rate, as the notebook has them."""
    torch.manual_seed(0)
    net = TinyNet()
    ours, theirs = net, copy.deepcopy(net)
    trainer(tmp_path, max_epochs=1).fit(ClassifierModule(ours, 3), loader)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.001)
    for x, y in loader:
        adam.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        adam.step()
    assert changed_tensors(theirs.state_dict(), ours.state_dict()) == []


def test_a_schedule_steps_once_a_batch(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    linear = partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=4
    )
    fit = trainer(tmp_path, max_steps=3)
    fit.fit(make(tiny, scheduler=linear), loader)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)


@pytest.mark.parametrize("lr_ratio", [0, float("inf"), float("nan"), "16"])
def test_refuses_a_ratio_of_learning_rates(tiny: TinyNet, lr_ratio: Any) -> None:
    with pytest.raises(ValueError, match=f"lr_ratio={lr_ratio}: expected a finite number > 0"):
        make(tiny, lr_ratio=lr_ratio)


def test_distillation_asks_the_base(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_lora(tiny)
    loss = Loss(distill=1.0, distill_on="all")
    module, given = make(tiny, loss=loss), []
    base = module.base
    monkeypatch.setattr(module, "base", lambda images: given.append(images) or base(images))
    trainer(tmp_path, max_steps=3).fit(module, loader)
    assert len(given) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_loss_is_the_mean_over_all_batches_of_the_steps(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path, accumulate: int
) -> None:
    class Recorded(ClassifierModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            losses.append(loss := super().training_step(batch, batch_idx))
            return loss

    losses: list[torch.Tensor] = []
    logger = Recorder()
    settings = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": accumulate}
    fit = trainer(tmp_path, logger=logger, **settings)
    fit.fit(Recorded(tiny, 3, optimizer=ADAM, lr=0.1), loader)
    window = torch.stack(losses[-2 * accumulate :])
    assert logger.metrics["train/loss"] == pytest.approx(window.mean().item())
    assert logger.counts["train/loss"] == 2


def test_a_loss_that_is_no_number_ends_training(
    tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = ClassifierModule(tiny, 3, optimizer=torch.optim.SGD, lr=1e30)
    with pytest.raises(TrainingError, match=r"optimizer.lr=1e\+30: the loss is nan at step"):
        trainer(tmp_path, max_steps=20, log_every_n_steps=1).fit(module, loader)


def test_says_when_it_was_validated(tiny: TinyNet, loader: DataLoader[Any], tmp_path: Path) -> None:
    module = make(tiny)
    assert module.validated_at is None
    fit = trainer(tmp_path, max_steps=4, num_sanity_val_steps=2)
    fit.fit(module, loader, loader)
    assert module.validated_at == 4
    assert list(module.outcomes) == ["val"]
