"""The one LightningModule of all stages: a network, with LoRA or without, and its metrics."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.lr_scheduler import LRScheduler

from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.metrics import Evaluation
from lora_mnist.errors import TrainingError
from lora_mnist.lora import has_lora, lora_disabled, lora_state_dict, loraplus

Batch = tuple[Tensor, Tensor]
#: What the base answered to each batch of a split, in order.
BaseAnswers = Mapping[str, tuple[Tensor, ...]]
#: Where a checkpoint has weights: with Lightning's weight averaging the average stands in
#: ``state_dict``, and what training goes on from beside it.
_STATES = {"state_dict", "current_model_state"}


class ClassifierModule(LightningModule):
    """Trains what is trainable in ``net`` and counts what it gets wrong, class by class.

    Tells callbacks and the bar ``train/loss``, the mean over the last ``log_every_n_steps``, and
    the totals of ``val`` and ``test``, such as ``val/accuracy`` and ``val/repaired``. Loggers get
    theirs from :mod:`lora_mnist.show.tensorboard`.

    Args:
        net: network from images, (N, channels, height, width) float32, to logits,
            (N, num_classes). With LoRA on it (:func:`lora_mnist.add_lora`) only LoRA is trained and
            kept in checkpoints.
        num_classes: number of classes.
        loss: what training minimises; ``None``: the cross-entropy.
        optimizer: makes the optimizer from the parameters to train.
        scheduler: makes the schedule of the learning rate, stepped once a batch, from the
            optimizer; ``None`` for a constant rate.
        lr_ratio: of :func:`lora_mnist.lora.loraplus`; finite and > 0.
        base_tensors: the base's tensors by name, where ``net`` itself is fine-tuned and changes
            them; an adapted network need only switch its adapter off.
        base_answers: what the base answered to each batch, by split, where an earlier module on
            the same base and images has found that out; see the attribute.
        hyperparameters: plain values to keep in checkpoints and to tell the logger.

    Attributes:
        outcomes: by split, what its last evaluation found, as it stands in results.json.
        base_answers: by split, what the base answered to each batch; for a later module.
        answers: of the last test, the answer to each image; see :class:`.metrics.AnswerMetric`.
        validated_at: the step at which ``outcomes["val"]`` was found; ``None`` before.

    Raises:
        ValueError: if ``lr_ratio`` is out of range.
        TrainingError: in training, if the loss is not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        *,
        loss: Loss | None = None,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] = torch.optim.Adam,
        scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        lr_ratio: float = 1.0,
        base_tensors: Mapping[str, Tensor] | None = None,
        base_answers: BaseAnswers | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if type(lr_ratio) not in (int, float) or not 0 < lr_ratio < float("inf"):
            raise ValueError(f"lr_ratio={lr_ratio}: expected a finite number > 0")
        # Only plain values: a checkpoint that held a module or a partial could not be loaded with
        # weights_only=True.
        self.save_hyperparameters(dict(hyperparameters or {}))
        self.net = net
        self.loss = loss or Loss()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.lr_ratio = lr_ratio
        self.has_lora = has_lora(net)
        self.base_tensors = base_tensors
        self.has_base = self.has_lora or base_tensors is not None
        self.evaluations = nn.ModuleDict(
            {s: Evaluation(num_classes, keeps_answers=s == "test") for s in ("val", "test")}
        )
        self.answers: dict[str, Tensor] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.base_answers = dict(base_answers or {})
        self._answers: list[Tensor] = []
        self._window = (torch.zeros(()), 0)  # sum and number of the losses since they were logged
        self.validated_at: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of normalised images, (N, channels, height, width)."""
        logits: Tensor = self.net(images)
        return logits

    def base(self, images: Tensor) -> Tensor:
        """What the base answers to normalised images: logits, (N, num_classes), no gradient."""
        with torch.no_grad():
            if self.base_tensors is None:
                with lora_disabled(self.net):
                    return self.forward(images)
            tensors = {key: tensor.to(images.device) for key, tensor in self.base_tensors.items()}
            mode = self.net.training
            self.net.eval()  # in train mode batch normalisation would move the base's statistics
            logits: Tensor = functional_call(self.net, tensors, images)
            self.net.train(mode)
            return logits

    def setup(self, stage: str) -> None:
        self._window = (torch.zeros(()), 0)

    def configure_optimizers(self) -> Any:
        optimizer = loraplus(self.net, self.optimizer, self.lr_ratio)
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        base_logits = self.base(images) if self.loss.needs_base else None
        loss = self.loss(self(images), labels, base_logits)
        if not math.isfinite(loss.item()):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise TrainingError(
                f"optimizer.lr: the loss is {loss.item()} at step {self.global_step + 1}, at a "
                f"learning rate of {rate:g}; expected a smaller one"
            )
        total, count = self._window
        self._window = (total + loss.detach().float(), count + 1)
        # A call of log costs as much as the adapter's own arithmetic: once a window is enough.
        window = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and (self.global_step + 1) % window == 0:
            total, count = self._window
            self.log("train/loss", total / count, prog_bar=True, logger=False, sync_dist=True)
            self._window = (torch.zeros(()), 0)
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
        base_logits = None
        if self.has_base:
            known = self.base_answers.get(split)
            base_logits = known[batch_idx] if known else self.base(images)
            self._answers.append(base_logits)
        self._evaluation(split).update(logits, labels, base_logits)

    def _evaluation(self, split: str) -> Evaluation:
        evaluation = self.evaluations[split]
        assert isinstance(evaluation, Evaluation)
        return evaluation

    def _conclude(self, split: str) -> None:
        """Keep what :meth:`_evaluate` counted, over all processes, and tell callbacks of it."""
        evaluation = self._evaluation(split)
        outcomes = evaluation.conclude(split)
        answers, self._answers = tuple(self._answers), []
        if self.trainer.sanity_checking:
            return
        self.outcomes |= outcomes
        if answers:
            self.base_answers[split] = answers
        self.answers = evaluation.answers or self.answers
        counted = {k: v for k, v in outcomes[split].items() if isinstance(v, int | float)}
        totals = {f"{split}/{key}": float(value) for key, value in counted.items()}
        self.log_dict(totals, logger=False, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside an adapter the base has a file of its own: keep the adapter alone."""
        checkpoint["loss_window"] = self._window
        if self.has_lora:
            kept = {f"net.{key}" for key in lora_state_dict(self.net)}
            for key in _STATES & checkpoint.keys():
                state = checkpoint[key]
                checkpoint[key] = {name: state[name] for name in state if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in what :meth:`on_save_checkpoint` left out with what the network holds."""
        self._window = checkpoint["loss_window"]
        if self.has_lora:
            own = {f"net.{key}" for key in lora_state_dict(self.net)}
            for key in _STATES & checkpoint.keys():
                if foreign := checkpoint[key].keys() - own:
                    raise ValueError(f"{key} holds {min(foreign)}, which is not the adapter's")
                checkpoint[key] = {**self.state_dict(), **checkpoint[key]}
