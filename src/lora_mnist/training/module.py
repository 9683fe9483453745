"""Trains and validates a network, with or without LoRA, in Lightning, for all stages."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import CatMetric

from lora_mnist.data.images import Batch
from lora_mnist.errors import TrainingError, UserError, require_number
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure.counts import count_errors
from lora_mnist.measure.predictions import compute_logits
from lora_mnist.show.loggers import logged_metrics


class Loss(nn.Module):
    """The cross-entropy ``-log softmax(z)_y``, averaged over a batch.

    With ``target_weight = w`` it is ``w * mean(to learn) + (1 - w) * mean(replayed)``, or the plain
    mean if a batch has images of only one kind.

    Args:
        target_weight: the share of the images to learn, 0 to 1; ``None``: all images count equally.
    """

    def __init__(self, target_weight: float | None = None) -> None:
        super().__init__()
        if target_weight is not None:
            require_number("target_weight", target_weight, 0, 1)
        self.target_weight = target_weight

    def forward(self, logits: Tensor, labels: Tensor, replayed: int = 0) -> Tensor:
        """Compute the loss, a scalar, of logits (N, num_classes) and labels, int64, (N,).

        The last ``replayed`` images of the batch are replayed.
        """
        losses = F.cross_entropy(logits, labels, reduction="none")
        to_learn = len(labels) - replayed
        if self.target_weight is None or to_learn == 0 or replayed == 0:
            return losses.mean()
        weights = torch.full_like(losses, (1 - self.target_weight) / replayed)
        weights[:to_learn] = self.target_weight / to_learn
        return (weights * losses).sum()


class ClassifierModule(LightningModule):
    """Trains the trainable parameters of ``net`` and counts its errors on each class."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        scheduler: Any = None,
        *,
        classes: Sequence[str],
        targets: Sequence[int] = (),
        loss: Loss | None = None,
        replay: int = 0,  # the last images of a batch, in all processes together
        test_prior: Sequence[int] | None = None,  # the number of test images of each class
        compiles: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss or Loss()
        # Not the network itself: Dynamo skips torch's own frames, such as nn.Sequential.forward.
        self.run_forward = torch.compile(self.forward) if compiles else self.forward
        self.optimizer, self.scheduler = optimizer, scheduler
        self.classes, self.targets, self.replay, self.test_prior = (
            classes,
            targets,
            replay,
            test_prior,
        )
        self.has_adapter = bool(lora_adapters(net))
        # Label, prediction and loss of each validation image. A confusion matrix of torchmetrics
        # takes images x classes x classes with trainer.deterministic, or on MPS.
        self.val_rows = CatMetric(
            nan_strategy="disable"
        )  # NaN checks would sync the GPU at each batch
        self.errors_by_step: dict[int, int] = {}  # on validation images

    def setup(self, stage: str) -> None:
        """Raise if rounding made the processes choose different classes or learning rates."""
        if stage != "fit":
            return
        lr = self.optimizer.defaults["lr"]
        chosen = {"target": [self.classes[c] for c in self.targets], "optimizer.lr": lr}
        first = self.trainer.strategy.broadcast(chosen)  # only now are they connected
        for key, value in chosen.items():
            if value != first[key]:
                raise UserError(
                    f"{key}: process {self.trainer.global_rank} has chosen {value}, and the first "
                    f"{first[key]}; expected a value on the command line"
                )

    def configure_optimizers(self) -> Any:
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": self.scheduler}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        replayed = self.replay // self.trainer.world_size
        loss: Tensor = self.loss(self.run_forward(images), labels, replayed)
        step, window = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and step % window == 0:  # a call of log takes as long as a step of an adapter
            mean = self.trainer.strategy.reduce(loss.detach().clone())  # so all processes end alike
            if not mean.isfinite():
                raise TrainingError(
                    f"optimizer.lr={self.optimizer.defaults['lr']}: the loss is {mean.item()} at "
                    f"step {step}; expected a smaller learning rate"
                )
            self.log("train/loss", mean, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = compute_logits(self.run_forward, images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        columns = (labels.float(), logits.argmax(dim=1).float(), losses.float())
        self.val_rows.update(torch.stack(columns, dim=1))

    def on_validation_epoch_end(self) -> None:
        """Log the counts of all processes, and reset them."""
        label, prediction, losses = self.val_rows.compute().cpu().T
        classes = len(self.classes)
        counts = count_errors(
            label.long(), prediction.long(), classes, self.targets, self.test_prior
        )
        counts["loss"] = losses.mean().item()
        if not self.trainer.sanity_checking:
            self.errors_by_step[self.global_step] = counts["errors"]
        self.log_dict(logged_metrics({"val": counts}, self.classes, self.targets))
        self.val_rows.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the error counts and only the adapter's tensors: the base has a file of its own."""
        checkpoint["errors_by_step"] = dict(self.errors_by_step)
        if self.has_adapter:
            lora = {f"net.{key}" for key in lora_state_dict(self.net)}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if key in lora}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the base, which :meth:`on_save_checkpoint` omitted, from the network."""
        self.errors_by_step = dict(checkpoint["errors_by_step"])
        if self.has_adapter:
            own, trained = self.state_dict(), checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: trained.get(key, own[key]) for key in own}
