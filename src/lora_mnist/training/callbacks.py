"""Callbacks of ours for Lightning's Trainer: an average of the weights, progress in the log."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lora_mnist.errors import require_number
from lora_mnist.progress import SECONDS_BETWEEN_LINES

log = logging.getLogger(__name__)


class TrainedAverage(Callback):
    """Validates, and ends training, with an average of the trained parameters.

    After each step it is ``decay * average + (1 - decay) * parameter``. Lightning's WeightAveraging
    stores the frozen base twice per checkpoint, and loses the average when a resumed run has no
    steps left.
    """

    def __init__(self, decay: float = 0.99) -> None:
        require_number("decay", decay, 0, 1)
        self.decay = decay
        self._average: dict[str, Tensor] = {}  # empty before the first step
        self._trained: dict[str, Tensor] = {}  # the parameters, while the average is in their place

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps, self._parameters = trainer.global_step, dict[str, Tensor]()
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                self._parameters[name] = parameter
        for tensors in (self._average, self._trained):  # from a checkpoint
            tensors |= {name: each.to(pl_module.device) for name, each in tensors.items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._load(pl_module, self._trained)
        self._trained = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._steps:  # inside accumulated gradients
            return
        self._steps = trainer.global_step
        if not self._average:
            self._average = self._copy_parameters()
        # One launch for all of them on a GPU.
        parameters = [self._parameters[name] for name in self._average]
        torch._foreach_lerp_([*self._average.values()], parameters, 1 - self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in place until the next batch: a checkpoint has what was validated."""
        if self._average and not self._trained:
            self._trained = self._copy_parameters()
            self._load(pl_module, self._average)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network, even if a resumed run takes no step."""
        self._load(pl_module, self._average)
        self._average, self._trained = {}, {}

    def _copy_parameters(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self._parameters.items()}

    @torch.no_grad()
    def _load(self, pl_module: LightningModule, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            pl_module.get_parameter(name).copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        # Pairs: base_ckpt= would take a dictionary for a second network.
        return {"average": [*self._average.items()], "trained": [*self._trained.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average, self._trained = dict(state_dict["average"]), dict(state_dict["trained"])


class LogDuration(Callback):
    """Logs an estimate of the time for all trainings, once, early in the first one."""

    def __init__(self, trainings: int) -> None:
        self.trainings, self.at = trainings, dict[int, float]()  # seconds, at the end of a step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step, steps = trainer.global_step, trainer.estimated_stepping_batches
        if step not in (5, 15) or step in self.at:  # the first steps are slower
            return
        self.at[step] = time.monotonic()
        minutes = (self.at[step] - self.at[5]) / 10 * steps * self.trainings / 60
        if 1 <= minutes < float("inf"):
            log.info("%d trainings of %s steps: some %.0f minutes", self.trainings, steps, minutes)


class LogProgress(Callback):
    """Logs a line at each validation, and every half minute between two of them."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the training among several

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first, self.started = trainer.global_step, time.monotonic()
        self.last_line_at = self.started

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if time.monotonic() - self.last_line_at > SECONDS_BETWEEN_LINES:
            self.log_progress(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.log_progress(trainer, "train/loss", "val/errors_of_target", "val/errors")

    def log_progress(self, trainer: Trainer, *keys: str) -> None:
        """Log the step, the time left, and the values of those keys that have one."""
        self.last_line_at = time.monotonic()
        step, steps = trainer.global_step, trainer.estimated_stepping_batches
        line = f"step {step:,}"
        if steps < float("inf"):
            left = (steps - step) * (self.last_line_at - self.started) / max(1, step - self.first)
            line += f" of {steps:,}, {timedelta(seconds=round(left))} left in {self.name}"
        for key in keys:
            if key in trainer.callback_metrics:
                line += f", {key} {trainer.callback_metrics[key]:.4g}"
        log.info(line)
