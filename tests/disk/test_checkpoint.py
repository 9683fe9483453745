"""Steps, epochs, parts of them: a run that is cut short anywhere ends with the same bits."""

import copy
import random

import numpy
import pytest
import torch
from composed import logged
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageDataModule, ImageTensors
from lora_mnist.disk.checkpoint import (
    AtomicCheckpointIO,
    LastCheckpoint,
    RandomStates,
    read_checkpoint,
    recorded_run,
)
from lora_mnist.disk.run_folder import LAST_CHECKPOINT
from lora_mnist.errors import UserError
from lora_mnist.lora import changed_tensors

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (53, 1, 2, 3), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, 3, (53,), generator=GENERATOR)


class Data(ImageDataModule):
    sets = (ImageTensors(IMAGES, LABELS),) * 3


class Cut(Callback):
    """Ends training before a step, as a kill would."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_start(self, *_):
        if not self.left:
            raise InterruptedError
        self.left -= 1


class Losses(DummyLogger):
    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def log_metrics(self, metrics, step=None):
        if "train/loss" in metrics:
            self.losses[step or 0] = metrics["train/loss"]


class Noise(nn.Module):
    """Draws from the generators of Python and NumPy."""

    def forward(self, x):
        return x * (random.random() + numpy.random.rand()) if self.training else x


def fit(folder, losses, cut=None, **settings):
    """Train from the last checkpoint in ``folder`` to the end, or to the cut."""
    torch.manual_seed(0)
    noisy = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3), Noise())
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), *noisy, nn.Linear(8, 3))
    data = Data("toy", ["cat", "dog", "owl"], 1, batch_size=5)
    callbacks = [RandomStates(), LastCheckpoint(every_n_train_steps=1)]
    if cut is not None:
        callbacks.append(Cut(cut))
    seed_everything(7, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=Losses(losses),
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
        **{"log_every_n_steps": 3, "num_sanity_val_steps": 0, **settings},
    )
    last = folder / LAST_CHECKPOINT
    checkpoint = last if last.exists() else None
    module = ClassifierModule(net, data, lr=0.01)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_steps": 30, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_steps": 15, "accumulate_grad_batches": 3},
        {"max_epochs": 4, "limit_train_batches": 5},
        {"max_epochs": 4, "overfit_batches": 5},
        {"max_epochs": 20, "limit_train_batches": 1, "log_every_n_steps": 1},
    ],
)
def test_a_cut_run_goes_on_to_the_same_bits(tmp_path, settings):
    """Cut after its first batch, in the middle of an epoch and at the end of one, of 5 or 11."""
    whole_losses = {}
    losses = {}
    whole = fit(tmp_path / "whole", whole_losses, **settings)
    for batches in (1, 4, 6):
        with pytest.raises(InterruptedError):
            fit(tmp_path / "cut", losses, batches, **settings)
    assert (tmp_path / "cut" / LAST_CHECKPOINT).exists()
    resumed = fit(tmp_path / "cut", losses, **settings)
    assert changed_tensors(whole, resumed) == []
    assert losses == whole_losses


def test_a_run_from_a_gpu_goes_on_without_one(tmp_path):
    """With all states but that of the GPU, and it says so."""
    whole = fit(tmp_path / "whole", {}, max_epochs=2)
    with pytest.raises(InterruptedError):
        fit(tmp_path / "cut", {}, 4, max_epochs=2)
    checkpoint = read_checkpoint(tmp_path / "cut" / LAST_CHECKPOINT)
    on_gpu = {"device": "cuda", "of_device": torch.zeros(16, dtype=torch.uint8)}
    checkpoint["random_states"][0] |= on_gpu
    torch.save(checkpoint, tmp_path / "cut" / LAST_CHECKPOINT)
    with logged("lora_mnist.disk.checkpoint") as text:
        resumed = fit(tmp_path / "cut", {}, max_epochs=2)
    assert "this run began on cuda and goes on on cpu" in text.getvalue()
    assert changed_tensors(whole, resumed) == []


def test_one_process_at_a_time_and_a_new_run_begins_anew(tmp_path):
    with recorded_run(tmp_path, {}, None) as checkpoint:
        assert checkpoint is None
        (tmp_path / LAST_CHECKPOINT).touch()
        second = recorded_run(tmp_path, {}, "latest")
        with pytest.raises(UserError, match="a run is still going there"), second:
            pass
    with recorded_run(tmp_path, {}, None) as checkpoint:
        assert checkpoint is None
