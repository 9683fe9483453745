"""Lines that say how far training is, where no progress bar is shown."""

import logging
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("lora_mnist.progress")  # lora_mnist.show is for tables, on standard output


class ProgressLines(Callback):
    """Lightning callback: logs the step and the time to go, soon after the start and then rarely.

    Args:
        first: seconds of training before the first line.
        every: seconds between two lines.
    """

    def __init__(self, first: float = 3.0, every: float = 30.0) -> None:
        self.first = first
        self.every = every
        self._started: float | None = None

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        if self._started is None:  # the first step may have compiled the network
            self._started, self._start_step, self._next = now, step, now + self.first
        if now < self._next or step == self._start_step:
            return
        self._next = now + self.every
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            return
        rate = (step - self._start_step) / (now - self._started)
        seconds = round((steps - step) / rate)
        text = f"step {step:,} of {steps:,}, about {seconds // 60} min {seconds % 60} s to go"
        log.info("%s", text.replace(" 0 min", ""))
