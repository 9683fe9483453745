"""What a person looks at while a run goes on."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's Rich bar, told of a step only as often as it is drawn.

    Lightning tells it of every step, which costs as much as a tenth of an adapter's arithmetic.

    Args:
        refresh_rate: times a second that the bar is drawn.
    """

    def __init__(self, refresh_rate: int) -> None:
        # The drawing thread looks that often whether it was told anything; a stage waits for its
        # last look, so it must not be seldom.
        super().__init__(refresh_rate=50, leave=True)
        self._seconds_between = 1 / refresh_rate
        self._drawn_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._drawn_at >= self._seconds_between:
            self._drawn_at = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(self.train_progress_bar_id, trainer.fit_loop.epoch_loop.batch_idx + 1)
        super().on_train_epoch_end(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's "Epoch 0/999" would show the limit that max_steps keeps a run from reaching.
        return f"epoch {current_epoch + 1}"
