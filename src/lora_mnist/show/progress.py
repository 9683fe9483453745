"""The bar of a run: it counts the steps that the run will take."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class StepsBar(TQDMProgressBar):
    """Lightning's bar; with ``max_steps`` it goes to them, over however many epochs.

    Lightning's own counts the batches of an epoch, so that a run of 100 steps would stop at
    100/547. Validation on the way shows no bar of its own: it takes less than a look at one.
    """

    def init_validation_tqdm(self) -> Tqdm:
        """A bar for validation alone; within training one that is not drawn."""
        if self.trainer.state.fn == "fit":
            return Tqdm(disable=True)
        return super().init_validation_tqdm()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.max_steps < 0:
            super().on_train_epoch_start(trainer)
            return
        bar = self.train_progress_bar
        if bar.total != trainer.max_steps:
            bar.reset(trainer.max_steps)
            bar.initial = trainer.global_step
            bar.set_description("steps")
            self._move(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.max_steps < 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif self._should_update(trainer.global_step, trainer.max_steps):
            self._move(trainer.global_step)
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss, without the version of the logger."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _move(self, step: int) -> None:
        bar = self.train_progress_bar
        if not bar.disable:
            bar.n = step
            bar.refresh()
