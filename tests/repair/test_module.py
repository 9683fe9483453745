import copy

import pytest
import torch
from helpers.nets import randomize
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora, lora_parameters
from lora_mnist.errors import TrainingError
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.repair.module import ClassifierModule, Loss, TrainedAverage
from lora_mnist.repair.predictions import evaluate, logged_metrics, outcomes_by_split

CLASSES = ["cat", "dog", "owl"]


def test_target_weight_is_the_share_of_the_images_to_learn():
    """In a batch of one kind, and by default, each image counts alike."""
    logits = 3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 2, 2, 0, 1, 1, 0])  # the last four are replayed
    losses = cross_entropy(logits, labels, reduction="none")
    expected = 0.2 * losses[:3].mean() + 0.8 * losses[3:].mean()
    torch.testing.assert_close(Loss(target_weight=0.2)(logits, labels, 4), expected)
    for loss, replayed in ((Loss(), 4), (Loss(0.2), 0), (Loss(0.2), 7)):
        assert torch.equal(loss(logits, labels, replayed), losses.mean())


def module_of(net, kind=ClassifierModule, lr=0.1, **settings):
    """A module that trains with Adam what is trainable in ``net``."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return kind(net, torch.optim.Adam(trained, lr=lr), classes=CLASSES, **settings)


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
    module = module_of(add_lora(tiny, init=init), Recorded)
    fit = trainer(tmp_path, max_steps=3, callbacks=TrainedAverage())
    fit.fit(module, loader)
    for parameter, steps in zip(lora_parameters(tiny), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(parameter, torch.stack(steps).mean(dim=0))
    assert changed_tensors(before, base_state_dict(tiny)) == []

    fit.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    names = {name.rsplit(".", 1)[1] for name in state if name.startswith("net.")}
    assert names == {"lora_A", "lora_B"} | more


@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_loss_is_that_of_every_second_steps_last_batch(tiny, loader, tmp_path, accumulate):
    class Recorded(ClassifierModule):
        def training_step(self, batch, batch_idx):
            losses.append(loss := super().training_step(batch, batch_idx))
            return loss

        def on_train_batch_end(self, *_):
            logged.append(self.trainer.callback_metrics.get("train/loss"))

    losses, logged = [], []
    settings = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": accumulate}
    trainer(tmp_path, **settings).fit(module_of(tiny, Recorded), loader)
    assert logged[2 * accumulate - 1].item() == pytest.approx(losses[2 * accumulate - 1].item())
    assert logged[-1].item() == pytest.approx(losses[-1].item())
    assert len(logged) == 4 * accumulate


def test_a_loss_that_is_not_finite_ends_training(tiny, loader, tmp_path):
    with torch.no_grad():
        tiny.linear2.bias[0] = float("nan")
    fit = trainer(tmp_path, max_steps=4, log_every_n_steps=2)
    with pytest.raises(TrainingError, match="optimizer.lr=0.1: the loss is nan at step 2; exp"):
        fit.fit(module_of(tiny), loader)


def test_what_is_drawn_in_a_step_follows_from_seed_and_step(tiny, loader, tmp_path):
    """Whatever was drawn before, and also where a run goes on."""

    class Drawing(ClassifierModule):
        def training_step(self, batch, batch_idx):
            drawn.append(torch.rand(1).item())
            return super().training_step(batch, batch_idx)

    def fit(seed, ckpt_path=None):
        drawn.clear()
        each = trainer(tmp_path, max_steps=4, accumulate_grad_batches=2)
        module = module_of(copy.deepcopy(tiny), Drawing, seed=seed)
        each.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
        return each, [*drawn]

    drawn = []
    _, first = fit(0)
    assert len(set(first)) == len(first) == 8
    torch.rand(5)
    assert fit(0)[1] == first
    assert not {*fit(1)[1]} & {*first}
    half = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    half.fit(module_of(copy.deepcopy(tiny), seed=0), loader)
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert fit(0, tmp_path / "half.ckpt")[1] == first[2:]


@pytest.mark.parametrize("has_adapter", [False, True])
def test_validation_logs_the_counts_of_the_table(tiny, loader, tmp_path, has_adapter):
    """Those that an evaluation of the same network gives, and once more when it is repeated."""
    base_val = None
    if has_adapter:
        base_val = evaluate(tiny, loader)
        randomize(add_lora(tiny))
    module = module_of(tiny, targets=[1], base_val=base_val)
    expected = outcomes_by_split({"val": evaluate(tiny, loader, base_val)}, [1])
    tags = logged_metrics(expected, CLASSES, [1])
    assert ("val/repaired" in tags) == has_adapter
    for _ in range(2):
        (logged,) = trainer(tmp_path).validate(module, loader, verbose=False)
        assert logged == pytest.approx(tags)


def test_all_is_computed_where_the_batch_is(tiny, tmp_path):
    """Training with replay, and validation, on a device that refuses to mix with the CPU."""
    module = module_of(add_lora(tiny), replay=3, loss=Loss(target_weight=0.5)).to("meta")
    module.trainer = trainer(tmp_path)
    batch = torch.empty(8, 6, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    module.training_step(batch, 0).backward()
    gradients = [p.grad for p in tiny.parameters() if p.requires_grad]
    assert {gradient.device.type for gradient in gradients} == {"meta"}
    module.validation_step(batch, 0)
    assert {column.device.type for column in module.validated[0]} == {"meta"}
