"""A Lightning callback for the tests of the distributed path."""

from pathlib import Path

import torch
from lightning.pytorch import Callback


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
            data.target_indices = data.target_indices.flip(0)
            data.targets = [0]
            data.replay_turns = {3: 2}

    def on_validation_end(self, trainer, pl_module):
        """The dial is tried on what validation leaves: here a base without errors."""
        predictions = pl_module.evaluations["val"].predictions
        if trainer.global_rank == 1:
            predictions["base"] = predictions["label"]
