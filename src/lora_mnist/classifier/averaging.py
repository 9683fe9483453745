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

    In a checkpoint ``state_dict`` has the average, and ``trained`` the parameters to go on from.
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

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network, also where a resumed run had no step left."""
        self._swap(pl_module)
        self._average = {}

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        """Exchange parameters and average; before the first step there is none."""
        for name, parameter in _trained(pl_module) if self._average else ():
            value = parameter.clone()
            parameter.copy_(self._average[name])
            self._average[name] = value

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average:
            checkpoint["trained"] = {name: p.detach() for name, p in _trained(pl_module)}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the parameters as they were; the network has the average by now."""
        if trainer.state.fn == "fit" and "trained" in checkpoint:
            trained = checkpoint["trained"]
            self._average = {name: checkpoint["state_dict"][name].clone() for name in trained}
            pl_module.load_state_dict(trained, strict=False)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
