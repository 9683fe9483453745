"""A Lightning callback for the tests of the distributed path."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Recorder(Callback):
    """Saves the training images that this process has seen, flattened."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(batch[0].flatten(start_dim=1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(torch.cat(self.seen), self.folder / f"{trainer.global_rank}.pt")


class ThreadRecorder(Callback):
    """Leaves a file named by the number of torch's threads in this process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (self.folder / str(torch.get_num_threads())).touch()
