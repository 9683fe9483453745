"""Whatever a run is made of: cut short anywhere, it goes on to the same bits."""

import copy
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora
from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageTensors
from lora_mnist.data.sampler import TrainingLoader
from lora_mnist.disk.checkpoint import (
    LAST,
    AtomicCheckpointIO,
    LastCheckpoint,
    RandomStates,
    recorded_run,
)
from lora_mnist.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(53, 6, generator=GENERATOR)
LABELS = torch.randint(0, 3, (53,), generator=GENERATOR)


class Data(LightningDataModule):
    """53 images of three classes; of class 1 alone with replay of the others, or all."""

    def __init__(self, targets: list[int] | None, replay: int, weighted: bool) -> None:
        super().__init__()
        self.place: dict[str, Any] = {}
        self.is_target = torch.isin(LABELS, torch.tensor(targets or [0, 1, 2]))
        self.replay, self.weights = replay, 1 + torch.arange(53.0) if weighted else None

    def train_dataloader(self) -> TrainingLoader:
        images, settings = ImageTensors(IMAGES, LABELS), {"weights": self.weights}
        self.loader = TrainingLoader(
            images, self.is_target, 5, self.replay, trainer=self.trainer, **settings
        )
        self.loader.load_state_dict(self.place)
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.place = state_dict

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(IMAGES, LABELS), 20, generator=torch.Generator())


class Cut(Callback):
    """Ends training before a step, as a kill would."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.left:
            raise InterruptedError
        self.left -= 1


class Losses(DummyLogger):
    """Keeps train/loss by step."""

    def __init__(self, losses: dict[int, float]) -> None:
        super().__init__()
        self.losses = losses

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.losses[step or 0] = metrics["train/loss"]


class Noise(nn.Module):
    """Draws from the generators of Python and NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (random.random() + numpy.random.rand()) if self.training else x


def network() -> nn.Module:
    torch.manual_seed(0)
    noisy = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3), Noise())
    return nn.Sequential(nn.Linear(6, 8), *noisy, nn.Linear(8, 3))


def fit(
    folder: Path,
    losses: dict[int, float],
    cut: int | None = None,
    *,
    lora: bool = False,
    targets: Any = None,
    replay: int = 0,
    weighted: bool = False,
    loss: Any = None,
    scheduler: Any = None,
    callbacks: Any = (),
    **settings: Any,
) -> dict[str, Tensor]:
    """Train from the last checkpoint in ``folder`` to the end, or to the cut."""
    net = network()
    if lora:
        add_lora(net, rank=2, dropout=0.2, base_dropout=True).train()
    module = ClassifierModule(
        net, 3, loss=Loss(**(loss or {})), lr=0.01, replay=replay, scheduler=scheduler
    )
    all_callbacks = [RandomStates(), LastCheckpoint(every_n_train_steps=1, dirpath=str(folder))]
    all_callbacks += [callback() for callback in callbacks]
    all_callbacks += [] if cut is None else [Cut(cut)]
    seed_everything(7, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        logger=Losses(losses),
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=all_callbacks,
        **{"log_every_n_steps": 3, "num_sanity_val_steps": 0, **settings},
    )
    last = folder / LAST
    checkpoint = last if last.exists() else None
    data = Data(targets, replay, weighted)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return copy.deepcopy(net.state_dict())


LINEAR = partial(torch.optim.lr_scheduler.LinearLR, end_factor=0.0, total_iters=30)
WAYS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_steps": 30, "val_check_interval": 5, "check_val_every_n_epoch": None},
    "lora with replay": {"lora": True, "targets": [1], "replay": 6, "max_steps": 30},
    "hardness": {"lora": True, "targets": [1], "replay": 6, "weighted": True, "max_steps": 30},
    "distillation": {
        "lora": True,
        "targets": [1],
        "replay": 6,
        "max_steps": 30,
        "loss": {"distill": 0.5, "target_weight": 0.5},
    },
    "scheduler": {"scheduler": LINEAR, "max_steps": 30},
    "accumulation": {"accumulate_grad_batches": 3, "max_steps": 15},
    "averaging": {
        "lora": True,
        "max_steps": 30,
        "callbacks": [lambda: WeightAveraging(use_buffers=False)],
    },
    "a part of each epoch": {"limit_train_batches": 5, "max_epochs": 4},
    "overfitting": {"overfit_batches": 5, "max_epochs": 4},
    "one batch an epoch": {"limit_train_batches": 1, "max_epochs": 20, "log_every_n_steps": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_run_goes_on_to_the_same_bits(tmp_path: Path, way: str) -> None:
    """Cut after its first batch, in the middle of an epoch and at the end of one, of 5 or 11."""
    whole_losses: dict[int, float] = {}
    losses: dict[int, float] = {}
    whole = fit(tmp_path / "whole", whole_losses, **WAYS[way])
    for batches in (1, 4, 6):
        with pytest.raises(InterruptedError):
            fit(tmp_path / "cut", losses, batches, **WAYS[way])
    resumed = fit(tmp_path / "cut", losses, **WAYS[way])
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert losses == whole_losses


def test_training_farther_ends_where_training_at_once_does(tmp_path: Path) -> None:
    losses: dict[int, float] = {}
    fit(tmp_path / "twice", losses, max_steps=17)
    farther = fit(tmp_path / "twice", losses, max_steps=30)
    at_once = fit(tmp_path / "once", {}, max_steps=30)
    assert all(torch.equal(farther[name], at_once[name]) for name in at_once)


# --- the record of a run -------------------------------------------------------------------------

SETTINGS = {"lora": {"rank": 1}, "trainer": {"max_steps": 10}, "classes": ["cat", "dog"]}


def begun(folder: Path, finish: bool) -> None:
    try:
        with recorded_run(folder, SETTINGS, None) as checkpoint:
            assert checkpoint is None
            (folder / "checkpoints" / LAST).touch()
            if not finish:
                raise InterruptedError
    except InterruptedError:
        pass


def test_a_cut_run_is_gone_on_with(tmp_path: Path) -> None:
    begun(tmp_path, finish=False)
    with recorded_run(tmp_path, SETTINGS, "latest") as checkpoint:
        assert checkpoint == tmp_path / "checkpoints" / LAST
    finished = pytest.raises(UserError, match="resume=latest: this run has finished; expected a")
    with finished, recorded_run(tmp_path, SETTINGS, "latest"):
        pass
    farther = {**SETTINGS, "trainer": {"max_steps": 11}}
    with recorded_run(tmp_path, farther, "latest") as checkpoint:
        assert checkpoint is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 2}}, "lora.rank=2: expected 1, as in resume=x"),
        ({"trainer": {"max_steps": 9}}, "trainer.max_steps=9: expected 10, as in resume=x"),
        ({"classes": ["ape", "cat"]}, r"classes=\['ape', 'cat'\]: expected \['cat', 'dog'\]"),
        ({"data_sha256": {"all": "1"}}, "its images have changed; expected those of resume=x"),
    ],
)
def test_other_settings_and_other_images_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    begun(tmp_path, finish=False)
    with pytest.raises(UserError, match=message), recorded_run(tmp_path, SETTINGS | changes, "x"):
        pass
    with recorded_run(tmp_path, SETTINGS | {"figures": True, "resume": "x"}, "x"):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two would write into one folder."""
    with (
        recorded_run(tmp_path, SETTINGS, None),
        pytest.raises(UserError, match="a run is still going there"),
        recorded_run(tmp_path, SETTINGS, "latest"),
    ):
        pass


def test_a_new_run_does_not_go_on_with_what_lies_there(tmp_path: Path) -> None:
    begun(tmp_path, finish=False)
    with recorded_run(tmp_path, SETTINGS, None) as checkpoint:
        assert checkpoint is None
