"""A Lightning callback for the tests of the distributed path."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Recorder(Callback):
    """Saves the training images of each step that this process has seen, flattened."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(batch[0].flatten(start_dim=1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.seen, self.folder / f"{trainer.global_rank}.pt")


class Nudge(Callback):
    """Gives the second process another class, replay, order and outcome than the first."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_rank == 1 and stage == "fit":
            data.target_indices = data.target_indices.flip(0)
            data.targets = [0]
            data.replay_turns = {3: 2}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The dial is tried on what validation leaves: here a base without errors."""
        predictions: Any = pl_module.evaluations["val"].predictions  # type: ignore[index,union-attr]
        if trainer.global_rank == 1:
            predictions["base"] = predictions["label"]


class Counter(Callback):
    """Counts steps, for the tests of what reaches the Trainer."""

    steps = 0
    precision: str | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        Counter.steps += 1
        Counter.precision = type(trainer.precision_plugin).__name__
