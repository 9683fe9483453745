"""Lightning callbacks for the tests: a run that ends early, and one in two processes."""

import os
import signal
from pathlib import Path

import torch
from lightning.pytorch import Callback

from lora_mnist.data.plan import Selection


class Crashed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Crash(Callback):
    """Ends the run before a step, counted from 0 over all epochs.

    Which one, and how, stands in the environment, so that the run that goes on has the same
    settings: ``CRASH=30`` raises, ``CRASH=30:SIGKILL`` sends the process a signal.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, _, name = os.environ.get("CRASH", "-1").partition(":")
        if trainer.global_step == int(step):
            if not name:
                raise Crashed
            os.kill(os.getpid(), getattr(signal, name))


class Recorder(Callback):
    """Saves the training images of each step that this process has seen, flattened."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch[0].flatten(start_dim=1))

    def on_train_end(self, trainer, pl_module):
        torch.save(self.seen, self.folder / f"{trainer.global_rank}.pt")


class Nudge(Callback):
    """Gives the second process another class, replay, order and outcome than the first."""

    def setup(self, trainer, pl_module, stage):
        data = trainer.datamodule
        if trainer.global_rank == 1 and stage == "fit":
            indices = data.selection.target_indices.flip(0)
            data.selection = Selection([0], indices, data.selection.replay_indices, {3: 2})

    def on_validation_end(self, trainer, pl_module):
        """The dial is tried on what validation leaves: here a base without errors."""
        predictions = pl_module.evaluations["val"].predictions
        if trainer.global_rank == 1:
            predictions["base"] = predictions["label"]
