"""The average of what is trained, over the steps of a training."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lora_mnist.errors import require_number


class TrainedAverage(Callback):
    """Validates, and ends training, with an average of the trained parameters.

    After step n it is ``average + (parameter - average) / n``, the mean of all steps, or with
    ``decay`` the moving average ``decay * average + (1 - decay) * parameter``. Lightning's
    WeightAveraging copies and averages the frozen base as well, at every step.
    """

    def __init__(self, decay: float | None = None) -> None:
        if decay is not None:
            require_number("decay", decay, 0, 1)
        self.decay = decay
        self._average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step
        for name, average in self._average.items():  # from a checkpoint
            self._average[name] = average.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:  # inside accumulated gradients
            return
        self._steps = trainer.global_step
        for name, parameter in _trained(pl_module):
            if name not in self._average:
                self._average[name] = parameter.detach().clone()
                continue
            average = self._average[name]
            if self.decay is None:
                average += (parameter - average) / self._steps
            else:
                average.lerp_(parameter, 1 - self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)
        if trainer.state.fn != "fit":  # of a checkpoint: its average is what is wanted
            self._average = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network, also where a resumed run had no step left."""
        self._swap(pl_module)
        self._average = {}

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        """Exchange parameters and average, if there is one."""
        for name, parameter in _trained(pl_module) if self._average else ():
            value = parameter.clone()
            parameter.copy_(self._average[name])
            self._average[name] = value

    def state_dict(self) -> dict[str, Any]:
        """The average by the parameters' names."""
        return self._average

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average = dict(state_dict)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
