"""The one LightningModule of all stages: a network, with LoRA or without, and its metrics."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassStatScores

from lora_mnist.lora import has_lora, lora_disabled, lora_state_dict
from lora_mnist.loss import Loss

Batch = tuple[Tensor, Tensor]
#: What a repair does to an image whose answer it changes from wrong to right, or the reverse.
_CHANGES = ("repaired", "broken")


class ClassifierModule(LightningModule):
    """Trains what is trainable in ``net`` and counts what it gets wrong, class by class.

    Logs ``train/loss``, the mean since it was last logged. For ``val``, ``test`` and, where there
    is a base to compare with, ``val_base`` and ``test_base`` (the base on the same images) it logs
    ``<split>/loss``, the mean cross-entropy whatever training minimises, ``<split>/accuracy``,
    ``<split>/accuracy_of_class/<c>`` and ``<split>/errors_of_class/<c>``. Where there is a base, it
    logs what the repair did: ``<split>/repaired``, images that the base gets wrong and the network
    right, and ``<split>/broken``, the reverse, with ``.../<c>`` for each class.

    Args:
        net: network from images, (N, 1, height, width) float32, to logits, (N, num_classes). With
            LoRA on it (:func:`lora_mnist.add_lora`) only LoRA is trained and kept in checkpoints.
        loss: what training minimises.
        optimizer: makes the optimizer from the parameters to train; ``None`` for testing alone.
        num_classes: number of classes.
        hyperparameters: the run's configuration in plain values, for checkpoint and logger.
        lr_ratio: learning rate of ``lora_B`` over that of everything else, finite and > 0 (LoRA+,
            Hayou et al. 2024, arXiv:2402.12354).
        base_logits: what the base answers to each batch, by split and number, as far as that is
            known; filled in by evaluation. Modules on the same base and data can share it.
        scheduler: makes the schedule of the learning rate, stepped once a batch, from the
            optimizer; ``None`` for a constant rate.
        base_tensors: the base's tensors by name, where ``net`` itself is fine-tuned and changes
            them; an adapted network need only be told to switch its adapter off.

    Raises:
        ValueError: if ``lr_ratio`` is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None,
        num_classes: int,
        hyperparameters: dict[str, Any],
        lr_ratio: float = 1.0,
        base_logits: dict[tuple[str, int], Tensor] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        base_tensors: dict[str, Tensor] | None = None,
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
        self.scheduler = scheduler
        self.lr_ratio = lr_ratio
        self.has_lora = has_lora(net)
        self.base_logits = {} if base_logits is None else base_logits
        self.base_tensors = base_tensors
        self.has_base = self.has_lora or base_tensors is not None
        splits = [s for split in ("val", "test") for s in (split, f"{split}_base")]
        self.counts = nn.ModuleDict({split: _class_counts(num_classes) for split in splits})
        self.losses = nn.ModuleDict({split: MeanMetric() for split in splits})
        self.changes = nn.ModuleDict({split: _Changes(num_classes) for split in ("val", "test")})
        #: What the last evaluation of each split found, as it stands in results.json.
        self.outcomes: dict[str, dict[str, Any]] = {}
        #: The step at which ``outcomes["val"]`` was found.
        self.validated_at: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes which hook it is in some forty times a step; nn.Module would look each
        # time whether that is a parameter, for four hundredths of a step of LoRA.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of normalised images, (N, 1, height, width)."""
        logits: Tensor = self.net(images)
        return logits

    def base(self, images: Tensor) -> Tensor:
        """What the base answers to normalised images: logits, (N, num_classes), no gradient."""
        with torch.no_grad():
            if self.base_tensors is None:
                with lora_disabled(self.net):
                    return self.forward(images)
            tensors = {key: tensor.to(images.device) for key, tensor in self.base_tensors.items()}
            logits: Tensor = functional_call(self.net, tensors, images)
            return logits

    def on_train_start(self) -> None:
        self._start_loss_window()

    def _start_loss_window(self) -> None:
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None
        optimizer = self._optimizer(self.optimizer)
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _optimizer(
        self, make: Callable[[Iterable[Any]], torch.optim.Optimizer]
    ) -> torch.optim.Optimizer:
        trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        if self.lr_ratio == 1:
            return make(list(trained.values()))
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in trained.items():
            sides[name.endswith("lora_B")].append(parameter)
        optimizer = make([{"params": side} for side in sides])
        optimizer.param_groups[1]["lr"] *= self.lr_ratio
        return optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        base_logits = self.base(images) if self.loss.needs_base else None
        loss = self.loss(self(images), labels, base_logits)
        self._loss_sum += loss.detach()
        self._loss_count += 1
        # A call of log costs as much as the adapter's own arithmetic: once a window is enough.
        window = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and (self.global_step + 1) % window == 0:
            loss_of_window = self._loss_sum / self._loss_count
            self.log("train/loss", loss_of_window, prog_bar=True, sync_dist=True)
            self._start_loss_window()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._conclude("val")
        self.validated_at = self.global_step

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._conclude("test")

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        """Count what the network, and the base where there is one, get wrong in a batch."""
        images, labels = batch
        logits = self(images)
        self._count(split, logits, labels)
        if self.has_base:
            if (split, batch_idx) not in self.base_logits:
                self.base_logits[split, batch_idx] = self.base(images)
            base_logits = self.base_logits[split, batch_idx]
            self._count(f"{split}_base", base_logits, labels)
            _metric(self.changes, split).update(base_logits, logits, labels)

    def _count(self, split: str, logits: Tensor, labels: Tensor) -> None:
        _metric(self.counts, split).update(logits, labels)
        _metric(self.losses, split).update(F.cross_entropy(logits, labels), len(labels))

    def _conclude(self, split: str) -> None:
        """Log and keep what :meth:`_evaluate` gathered, over all processes, and start afresh."""
        outcome = self._conclude_counts(split)
        if not self.has_base:
            self.outcomes[split] = outcome
            return
        changes = _metric(self.changes, split)
        repaired, broken = changes.compute()
        changes.reset()
        self.outcomes[split] = {
            "repaired": sum(repaired),
            "broken": sum(broken),
            "repaired_per_class": repaired,
            "broken_per_class": broken,
            **outcome,
        }
        self.outcomes[f"{split}_base"] = self._conclude_counts(f"{split}_base")
        self.log_dict({f"{split}/{name}": self.outcomes[split][name] for name in _CHANGES})
        for name, per_class in zip(_CHANGES, (repaired, broken), strict=True):
            images = {f"{split}/{name}_of_class/{c}": n for c, n in enumerate(per_class)}
            self._tell_loggers(images)

    def _conclude_counts(self, split: str) -> dict[str, Any]:
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
        values = {f"{split}/{key}": outcome[key] for key in ("loss", "accuracy")}
        for c, (wrong, total) in enumerate(zip(errors, images, strict=True)):
            values[f"{split}/errors_of_class/{c}"] = float(wrong)
            values[f"{split}/accuracy_of_class/{c}"] = 1 - wrong / total if total else math.nan
        if split.endswith("_base"):
            self._tell_loggers(values)
        else:
            self.log_dict(values)
        return outcome

    def _tell_loggers(self, values: Mapping[str, float]) -> None:
        """Log what callbacks have no use for; ``self.log`` takes 0.6 ms for every value."""
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(dict(values), self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside an adapter the base has a file of its own: keep the adapter alone."""
        if self.has_lora:
            kept = {f"net.{key}" for key in lora_state_dict(self.net)}
            for key in _STATES & checkpoint.keys():
                state = checkpoint[key]
                checkpoint[key] = {name: state[name] for name in state if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in what :meth:`on_save_checkpoint` left out with what the network holds."""
        if self.has_lora:
            for key in _STATES & checkpoint.keys():
                checkpoint[key] = {**self.state_dict(), **checkpoint[key]}


#: Where a checkpoint has weights: with Lightning's weight averaging the average stands in
#: ``state_dict``, and what training goes on from beside it.
_STATES = {"state_dict", "current_model_state"}


class _Changes(Metric):
    """Per class: images that the base gets wrong and the network right, and the reverse."""

    repaired: Tensor
    broken: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in _CHANGES:
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, base_logits: Tensor, logits: Tensor, labels: Tensor) -> None:
        before, after = (z.argmax(dim=1) == labels for z in (base_logits, logits))
        for count, changed in ((self.repaired, after & ~before), (self.broken, before & ~after)):
            count += torch.bincount(labels[changed], minlength=len(count))

    def compute(self) -> tuple[list[int], list[int]]:
        return self.repaired.tolist(), self.broken.tolist()


def _class_counts(num_classes: int) -> Metric:
    """Per class: right, wrongly given, rightly not given, missed, and images; (num_classes, 5)."""
    return MulticlassStatScores(num_classes, average=None, validate_args=False)


def _metric(metrics: nn.ModuleDict, split: str) -> Metric:
    metric = metrics[split]
    assert isinstance(metric, Metric)
    return metric
