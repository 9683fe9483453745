"""The one LightningModule of both stages: a network, with LoRA or without, and its metrics."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassStatScores

from lora_mnist.lora import has_lora, lora_disabled, lora_state_dict

Batch = tuple[Tensor, Tensor]


class ClassifierModule(LightningModule):
    """Trains what is trainable in ``net`` and counts what it gets wrong, class by class.

    Logs ``train/loss``, the mean since it was last logged. For ``val``, ``test`` and, where the
    network carries LoRA, ``test_base`` (the same test images with the adapter switched off) it
    logs ``<split>/loss``, ``<split>/accuracy``, ``<split>/accuracy_of_class/<c>`` and
    ``<split>/errors_of_class/<c>``.

    Args:
        net: network from images, (N, 1, height, width) float32, to logits, (N, num_classes). With
            LoRA on it (:func:`lora_mnist.add_lora`) only LoRA is trained and kept in checkpoints.
        loss: function of logits and labels, (N,) int64, to a scalar.
        optimizer: makes the optimizer from the parameters to train; ``None`` for testing alone.
        num_classes: number of classes.
        hyperparameters: the run's configuration in plain values, for checkpoint and logger.
        lr_ratio: learning rate of ``lora_B`` over that of everything else, finite and > 0 (LoRA+,
            Hayou et al. 2024, arXiv:2402.12354).
        base_logits: what the base answers to each test batch, by its number, as far as that is
            known; filled in by the test. Modules on the same base and data can share it.

    Raises:
        ValueError: if ``lr_ratio`` is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None,
        num_classes: int,
        hyperparameters: dict[str, Any],
        lr_ratio: float = 1.0,
        base_logits: dict[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if type(lr_ratio) not in (int, float) or not 0 < lr_ratio < float("inf"):
            raise ValueError(f"lr_ratio={lr_ratio}: expected a finite number > 0")
        # Only plain values: a checkpoint that held a module or a partial could not be loaded with
        # weights_only=True.
        self.save_hyperparameters(hyperparameters)
        self.net = net
        self.loss = loss
        self.optimizer = optimizer
        self.lr_ratio = lr_ratio
        self.has_lora = has_lora(net)
        self.base_logits = {} if base_logits is None else base_logits
        splits = ["val", "test"] + ["test_base"] * self.has_lora
        self.counts = nn.ModuleDict({split: _class_counts(num_classes) for split in splits})
        self.losses = nn.ModuleDict({split: MeanMetric() for split in splits})
        #: What the last evaluation of each split found, as it stands in results.json.
        self.outcomes: dict[str, dict[str, Any]] = {}
        #: The step at which ``outcomes["val"]`` was found.
        self.validated_at: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of normalised images, (N, 1, height, width)."""
        logits: Tensor = self.net(images)
        return logits

    def on_train_start(self) -> None:
        self._start_loss_window()

    def _start_loss_window(self) -> None:
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        if self.lr_ratio == 1:
            return self.optimizer(list(trained.values()))
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in trained.items():
            sides[name.endswith("lora_B")].append(parameter)
        optimizer = self.optimizer([{"params": side} for side in sides])
        optimizer.param_groups[1]["lr"] *= self.lr_ratio
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self(images), labels)
        self._loss_sum += loss.detach()
        self._loss_count += 1
        # A call of log costs as much as the adapter's own arithmetic: once a window is enough.
        window = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and (self.global_step + 1) % window == 0:
            self.log("train/loss", self._loss_sum / self._loss_count, prog_bar=True)
            self._start_loss_window()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self._count("val", self(images), labels)

    def on_validation_epoch_end(self) -> None:
        self._conclude("val")
        self.validated_at = self.global_step

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self._count("test", self(images), labels)
        if self.has_lora:
            if batch_idx not in self.base_logits:
                with lora_disabled(self.net):
                    self.base_logits[batch_idx] = self(images)
            self._count("test_base", self.base_logits[batch_idx], labels)

    def on_test_epoch_end(self) -> None:
        self._conclude("test")
        if self.has_lora:
            self._conclude("test_base")

    def _count(self, split: str, logits: Tensor, labels: Tensor) -> None:
        _metric(self.counts, split).update(logits, labels)
        _metric(self.losses, split).update(self.loss(logits, labels), len(labels))

    def _conclude(self, split: str) -> None:
        """Log and keep what :meth:`_count` gathered, over all processes, and start afresh."""
        counts, loss = _metric(self.counts, split), _metric(self.losses, split)
        _, _, _, errors, images = counts.compute().T.tolist()
        outcome = {
            "loss": loss.compute().item(),
            "accuracy": (sum(images) - sum(errors)) / sum(images),
            "errors": sum(errors),
            "errors_per_class": errors,
            "images_per_class": images,
        }
        counts.reset()
        loss.reset()
        self.outcomes[split] = outcome
        self.log(f"{split}/loss", outcome["loss"])
        self.log(f"{split}/accuracy", outcome["accuracy"])
        for c, (wrong, total) in enumerate(zip(errors, images, strict=True)):
            self.log(f"{split}/errors_of_class/{c}", float(wrong))
            self.log(f"{split}/accuracy_of_class/{c}", 1 - wrong / total if total else float("nan"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside an adapter the base has a file of its own: keep the adapter alone."""
        if self.has_lora:
            kept = {f"net.{key}" for key in lora_state_dict(self.net)}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if key in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in what :meth:`on_save_checkpoint` left out with what the network holds."""
        if self.has_lora:
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def _class_counts(num_classes: int) -> Metric:
    """Per class: right, wrongly given, rightly not given, missed, and images; (num_classes, 5)."""
    return MulticlassStatScores(num_classes, average=None, validate_args=False)


def _metric(metrics: nn.ModuleDict, split: str) -> Metric:
    metric = metrics[split]
    assert isinstance(metric, Metric)
    return metric
