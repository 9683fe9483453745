"""The one LightningModule of all stages: trains and validates a network, with or without LoRA."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lora_mnist.data.images import Batch
from lora_mnist.data.plan import seed_generators
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.repair.loss import Loss
from lora_mnist.repair.predictions import (
    Predictions,
    columns_of,
    logged_metrics,
    outcomes_by_split,
)


class ClassifierModule(LightningModule):
    """Trains what is trainable in ``net`` and counts what it gets wrong, class by class.

    Logs ``train/loss``, the loss of every ``log_every_n_steps``-th step's last batch, and for
    ``val`` what :func:`logged_metrics` gives. A loss that is not finite when it is logged ends
    training with ``TrainingError``. What is drawn in a step, as for dropout, follows from ``seed``
    and the number of the step.

    Args:
        net: maps images, (N, channels, height, width) float32, to logits, (N, num_classes). With
            LoRA on it (:func:`lora_mnist.add_lora`) only LoRA is kept in checkpoints.
        optimizer: of the trainable parameters of ``net``.
        scheduler: of its learning rate, if any, which takes a step each ``interval``.
        loss: of a batch.
        replay: how many images of a batch, the last ones, are replayed; of all processes together.
        seed: of what is drawn in a step.
        classes: their names, for the curves.
        targets: the classes to repair.
        base_val: the base's predictions for the validation images, to compare with.
        hyperparameters: plain values for checkpoints and loggers.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        scheduler: Any = None,
        *,
        interval: str = "step",
        loss: Loss | None = None,
        replay: int = 0,
        seed: int = 0,
        classes: Sequence[str] = (),
        targets: Sequence[int] = (),
        base_val: Predictions | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(dict(hyperparameters or {}))
        self.net, self.loss = net, loss or Loss()
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.replay, self.seed = replay, seed
        self.classes, self.targets, self.base_val = list(classes), list(targets), base_val
        self.has_adapter = bool(lora_adapters(net))
        self.validated = _Rows()

    def setup(self, stage: str) -> None:
        """Refuse to train where several processes have chosen another class, or another rate.

        Rounding may differ between machines, and with it which of two classes is the weakest.
        """
        if stage != "fit":
            return
        chosen = {"target": self.targets, "optimizer.lr": self.optimizer.defaults["lr"]}
        first = self.trainer.strategy.broadcast(chosen)
        for key, value in chosen.items():
            if value != first[key]:
                raise UserError(
                    f"{key}: process {self.trainer.global_rank} has chosen {value}, and the first "
                    f"{first[key]}; expected a value on the command line"
                )

    def configure_optimizers(self) -> Any:
        if self.scheduler is None:
            return self.optimizer
        schedule = {"scheduler": self.scheduler, "interval": self.interval}
        return {"optimizer": self.optimizer, "lr_scheduler": schedule}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is drawn in this step, in each process, for each of its batches."""
        trainer = self.trainer
        batch_of_step = batch_idx % trainer.accumulate_grad_batches
        seed_generators(self.seed, trainer.global_rank, trainer.global_step, batch_of_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss(self.net(images), labels, self.replay // self.trainer.world_size)
        step, window = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and step % window == 0:  # a call of log takes as long as a step of an adapter
            if not loss.isfinite():
                raise TrainingError(
                    f"optimizer.lr={self.optimizer.defaults['lr']}: the loss is {loss.item()} at "
                    f"step {step}; expected a smaller learning rate"
                )
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.validated.update(self.net(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the counts of all processes."""
        columns = self.validated.compute()
        self.validated.reset()
        if self.trainer.sanity_checking:
            return
        table = Predictions(self.validated.num_classes, *columns)
        if self.base_val is not None:
            of_base = self.base_val.at(table.index)
            table = of_base.with_after(table.before, table.before_probability, table.before_loss)
        outcomes = outcomes_by_split({"val": table}, self.targets)
        self.log_dict(logged_metrics(outcomes, self.classes, self.targets), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the adapter: the base has a file of its own."""
        if self.has_adapter:
            lora = {f"net.{key}" for key in lora_state_dict(self.net)}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if key in lora}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the base, which :meth:`on_save_checkpoint` left out, from the network."""
        if self.has_adapter:
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


class _Rows(Metric):
    """The predictions of a network alone, put together over the processes of a distributed run.

    Image ``j`` of process ``r`` is image ``j * processes + r`` of all, as
    :class:`lora_mnist.data.datamodule.ImageDataModule` shares them out.
    """

    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 0
        for name in ("index", "label", "prediction", "probability", "loss"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits of shape (N, num_classes), ``labels`` int64 of shape (N,)."""
        rank, processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, processes = dist.get_rank(), dist.get_world_size()
        self.num_classes = logits.shape[1]
        first = sum(map(len, self.label))
        place = torch.arange(first, first + len(labels), device=labels.device)
        columns = (place * processes + rank, labels, *columns_of(logits, labels))
        names = ("index", "label", "prediction", "probability", "loss")
        for name, column in zip(names, columns, strict=True):
            getattr(self, name).append(column)

    def compute(self) -> list[Tensor]:
        """The columns of all images, in the order of the images: those of a table, on the CPU."""
        columns = []
        for name in ("index", "label", "prediction", "probability", "loss"):
            columns.append(dim_zero_cat(getattr(self, name)).cpu())
        order = columns[0].argsort()
        return [column[order] for column in columns]
