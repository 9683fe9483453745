"""A callback of Lightning that measures a command for the benchmark."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Prints steps a second, from the end of the first step on."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rate = (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])
        print(f"measured: {rate}")
