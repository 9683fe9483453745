"""The one LightningModule of all stages: a network, with LoRA or without, and its metrics."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from lora_mnist.classifier.loss import Loss
from lora_mnist.classifier.metrics import Evaluation
from lora_mnist.data import TEST_SETS, Batch, ImageDataModule
from lora_mnist.data.plan import seed_generators
from lora_mnist.disk.base import Base
from lora_mnist.errors import TrainingError, config_group, require_number
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import lora_disabled, lora_names, set_lora_scale
from lora_mnist.lora.peft import WEIGHTS_NAME

#: With more classes only those to repair have a curve of their own.
_MAX_CURVES = 16


class ClassifierModule(LightningModule):
    """Trains what is trainable in ``net`` and counts what it gets wrong, class by class.

    Logs ``train/loss``, that of the last batch of every ``log_every_n_steps``-th step, and for
    ``val`` and ``test`` what :func:`logged_metrics` gives. A loss that is not finite when it is
    logged ends training with ``TrainingError``. What is drawn in a step, as for dropout, follows
    from ``seed`` and the number of the step.

    ``net`` maps images, (N, channels, height, width) float32, to logits, (N, num_classes). With
    LoRA on it (:func:`lora_mnist.add_lora`) only LoRA is trained and kept in checkpoints.
    ``base_tensors`` are the base's by name, for where ``net`` itself is fine-tuned and changes
    them. ``hyperparameters`` are plain values for checkpoints and loggers.
    """

    def __init__(
        self,
        net: nn.Module,
        data: ImageDataModule,
        targets: Sequence[int] = (),
        *,
        loss: Loss | None = None,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        lr: float = 1e-3,
        scheduler: Callable[[Optimizer], Any] | None = None,
        interval: str = "step",
        seed: int = 0,
        base_tensors: Mapping[str, Tensor] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Only plain values: a checkpoint that held a module or a partial could not be loaded with
        # weights_only=True.
        self.save_hyperparameters(dict(hyperparameters or {}))
        self.net = net
        self.loss = loss or Loss()
        self.optimizer, self.lr = optimizer, lr
        self.scheduler, self.interval = scheduler, interval
        self.seed = seed
        names = lora_names(net)
        self.adapter = names[-1] if names else None  # the one to train, by name
        # Where other adapters lie below, they belong to what it is compared with.
        self.compared_with = "before" if len(names) > 1 else "base"
        self.base_tensors = None if names else base_tensors
        # Not the data itself: weight averaging makes a deep copy of the module.
        self.class_names, self.targets, self.replay = data.classes, list(targets), data.replay
        splits = ("val", *TEST_SETS)
        self.evaluations = nn.ModuleDict({s: Evaluation(len(data.classes)) for s in splits})
        # The last ones by split, as Evaluation has them.
        self.predictions: dict[str, dict[str, Tensor]] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}  # the last ones by split, as in results.json
        self.validated_at: int | None = None  # the step of outcomes["val"]
        # By split: each batch's logits before training, which never change.
        self.base_logits: dict[str, list[Tensor | None]] = {}

    def logits_before(self, images: Tensor) -> Tensor | None:
        """Logits, (N, num_classes), of what training started from, for normalised images."""
        if self.adapter is not None:
            with torch.no_grad(), lora_disabled(self.net, self.adapter):
                logits: Tensor = self.net(images)
            return logits
        if self.base_tensors is None:
            return None
        tensors = {key: tensor.to(images.device) for key, tensor in self.base_tensors.items()}
        mode = self.net.training
        self.net.eval()  # in train mode batch normalisation would move the base's statistics
        with torch.no_grad():
            logits = functional_call(self.net, tensors, images)
        self.net.train(mode)
        return logits

    def setup(self, stage: str) -> None:
        """Let all processes train as the first one has decided.

        Rounding may differ between machines, and with it which of two classes is the weakest.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and getattr(data, "selection", None) is not None:
            decided = self.lr, data.selection
            self.lr, data.selection = self.trainer.strategy.broadcast(decided)
            self.targets = data.selection.targets

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        with config_group("optimizer"):
            optimizer = self.optimizer(trained, lr=self.lr)
        if self.scheduler is None:
            return optimizer
        with config_group("scheduler"):
            scheduler = self.scheduler(optimizer)
        schedule = {"scheduler": scheduler, "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def loss_of(self, batch: Batch, replayed: int) -> Tensor:
        """The loss of normalised images, of which the last ``replayed`` are replayed ones."""
        images, labels = batch
        base_logits = self.logits_before(images) if self.loss.distill else None
        loss: Tensor = self.loss(self.net(images), labels, base_logits, replayed)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is drawn in this step, in each process, for each of its batches."""
        trainer = self.trainer
        batch_of_step = batch_idx % trainer.accumulate_grad_batches
        place = trainer.global_rank, trainer.global_step, batch_of_step
        seed_generators(self.seed, *place, device=self.device.type)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch, self.replay // self.trainer.world_size)
        step, window = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window and step % window == 0:  # a call of log takes as long as a step of an adapter
            if not loss.isfinite():
                raise TrainingError(
                    f"optimizer.lr={self.lr}: the loss is {loss.item()} at step {step}; "
                    "expected a smaller learning rate"
                )
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._keep_and_log_outcome("val")
        self.validated_at = self.global_step

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(TEST_SETS[dataloader_idx], batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        for split in TEST_SETS[: len(self.trainer.num_test_batches)]:
            self._keep_and_log_outcome(split)

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        base_logits = self.base_logits.setdefault(split, [])
        if batch_idx == len(base_logits):
            base_logits.append(self.logits_before(images))
        evaluation: Any = self.evaluations[split]
        evaluation.update(self.net(images), labels, base_logits[batch_idx])

    def _keep_and_log_outcome(self, split: str) -> None:
        """Keep and log the outcome of a split, over all processes."""
        evaluation: Any = self.evaluations[split]
        outcomes = evaluation.compute_and_reset(split, self.compared_with)
        if self.trainer.sanity_checking:
            return
        self.outcomes |= outcomes
        self.predictions[split] = evaluation.predictions
        names = self.class_names if split == "val" else ()
        # The same in each process: the counts are of all.
        self.log_dict(logged_metrics(outcomes, names, self.targets), sync_dist=True)

    def scale_adapter(self, scale: float) -> None:
        """Turn the trained adapter up or down; it is then to be validated again."""
        set_lora_scale(self.net, scale, self.adapter)
        self.validated_at = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the adapter: the base has a file of its own."""
        checkpoint["lr"] = self.lr
        if self.adapter is not None:
            lora = {f"net.{key}" for key in lora_state_dict(self.net)}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key: state[key] for key in state if key in lora}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the base, which :meth:`on_save_checkpoint` left out, from the network."""
        self.lr = checkpoint["lr"]  # the run goes on at the rate that it began with
        if self.adapter is not None:
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def validate_once(trainer: Trainer, module: ClassifierModule, data: ImageDataModule) -> None:
    """Validate, unless that was done after the last step or there are no validation images."""
    if len(data.val_set) and module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)


def logged_metrics(
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = (),
    targets: Sequence[int] | None = None,
) -> dict[str, float]:
    """The numbers of ``outcomes``, which have their names of results.json, by tag.

    With ``names`` each class has a curve; among many classes only those to repair have one.
    """
    classes: Sequence[int] = range(len(names))
    if len(names) > _MAX_CURVES:
        classes = list(targets or ())[:_MAX_CURVES]
    tags: dict[str, float] = {}
    for split, outcome in outcomes.items():
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        for key in ("accuracy", "loss", "errors", "repaired", "broken"):
            if outcome.get(key) is not None:
                tags[f"{split}/{key}"] = float(outcome[key])
        if targets:
            target_errors = sum(errors[c] for c in targets)
            tags[f"{split}/errors_of_target"] = float(target_errors)
            tags[f"{split}/errors_elsewhere"] = float(sum(errors) - target_errors)
            false_calls = sum(outcome["false_calls_per_class"][c] for c in targets)
            tags[f"{split}/false_calls_of_target"] = float(false_calls)
        for c in classes:
            name = names[c].replace("/", "-")  # else it would begin a level of tags
            if images[c]:
                tags[f"{split}/accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
            if (precision := outcome["precision_per_class"][c]) is not None:
                tags[f"{split}/precision_per_class/{name}"] = precision
    return tags


def make_module(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, base: Base | None = None
) -> ClassifierModule:
    """The module that trains ``net`` with loss, optimizer and schedule as ``cfg`` has them.

    The last adapter on ``net`` is the one to train, on the classes of ``data.selection``. ``base``
    is what the network started from; ``None``: it becomes a base itself. For ``optimizer.lr=auto``
    :attr:`lr` is still to be chosen. With ``cfg.compile`` the network is compiled in place.
    """
    # A run that goes on must have the same settings, and the same content of files.
    settings: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    targets = data.selection.targets if data.selection else []
    settings |= {"base_sha256": base and base.sha256, "targets": targets}
    settings |= {"classes": data.classes, "data_sha256": dict(data.sha256)}
    if cfg.get("adapter") is not None:
        content = Path(cfg.adapter, WEIGHTS_NAME).read_bytes()
        settings["adapter_sha256"] = hashlib.sha256(content).hexdigest()
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    optimizer, scheduler = dict(cfg.optimizer), dict(cfg.scheduler or {})
    lr, interval = optimizer.pop("lr"), scheduler.pop("interval", "step")
    with config_group("optimizer"):
        lr = 1.0 if lr == "auto" else lr
        require_number("lr", lr, 0, 1e30)
        make_optimizer = instantiate(optimizer, _convert_="all")  # plain lists, for checkpoints
    with config_group("scheduler"):
        make_scheduler = instantiate(scheduler, _convert_="all") if scheduler else None
    if cfg.compile:
        net.compile()  # in place: its tensors keep their names
    module = ClassifierModule(
        net,
        data,
        targets,
        loss=loss,
        optimizer=make_optimizer,
        lr=lr,
        scheduler=make_scheduler,
        interval=interval,
        seed=cfg.seed,
        base_tensors=base and base.tensors,
        hyperparameters=settings,
    )
    # A mistake in optimizer or schedule: Lightning makes them after the run has begun.
    module.configure_optimizers()
    return module
