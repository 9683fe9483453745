"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
)
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig
from torch import nn

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.dataset import ImageDataset
from lora_mnist.data.images import Images
from lora_mnist.disk.checkpoint import AtomicCheckpointIO, LastCheckpoint, step_of
from lora_mnist.disk.results import Clock
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.repair.module import ClassifierModule
from lora_mnist.repair.networks import evaluating, importable
from lora_mnist.repair.predictions import Predictions, evaluate
from lora_mnist.run import Run

log = logging.getLogger(__name__)


def make_trainer(cfg: DictConfig, run: Run) -> Trainer:
    """Lightning's Trainer as ``cfg.trainer`` has it, with ``cfg.callbacks`` and ``cfg.logger``.

    Callbacks and plugins of ``cfg.trainer`` are added to the configured ones; a logger there
    replaces all others.

    Raises:
        UserError: if a value cannot be used, or the Trainer does not suit a run.
    """
    callbacks: list[Any] = []
    for name, config in (cfg.get("callbacks") or {}).items():
        if config is not None:
            with importable([Path.cwd()]), config_group(f"callbacks.{name}"):
                callbacks.append(instantiate(config))
    loggers: list[Any] = []
    for name, config in (cfg.get("logger") or {}).items():  # ~logger leaves none
        if config is None:
            continue
        changes = {}
        if "purge_step" in config and cfg.get("resume") is not None:
            # Steps after the checkpoint are logged again.
            changes["purge_step"] = step_of(run.folder / LAST_CHECKPOINT)
        with config_group(f"logger.{name}"):
            loggers.append(instantiate(config, **changes))
    with importable([Path.cwd()]), config_group("trainer"):
        # The arguments alone: the Trainer is made below.
        made = instantiate(cfg.trainer, _convert_="all", _partial_=True)
        arguments = dict(made.keywords)
        callbacks += arguments.pop("callbacks", None) or []
        # After the others, whose states it saves.
        callbacks.sort(key=lambda each: isinstance(each, LastCheckpoint))
        # A file would keep each state of the bar.
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        defaults: dict[str, Any] = {
            "logger": loggers or False,
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
        }
        trainer: Trainer = made.func(
            default_root_dir=str(run.folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *(arguments.pop("plugins", None) or [])],
            use_distributed_sampler=False,  # each process has its share of the plan's batches
            **defaults | arguments,
        )
    refuse_unsuitable(trainer, run)
    if not trainer.is_global_zero:  # the first process says it for all
        logging.getLogger("lora_mnist").setLevel(logging.ERROR)
    return trainer


def refuse_unsuitable(trainer: Trainer, run: Run) -> None:
    """Refuse a Trainer that would do something else than what results.json says."""
    changing = (BatchSizeFinder, LearningRateFinder, GradientAccumulationScheduler)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, changing):
            raise UserError(
                f"callbacks: {type(callback).__name__} would change what results.json names; "
                "expected data.batch_size, optimizer.lr and trainer.accumulate_grad_batches"
            )
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    if not trainer.limit_test_batches:
        raise UserError("trainer.limit_test_batches=0: expected > 0, since a run ends in a test")
    if trainer.world_size > 1 and run.is_sweep:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected one process for each job of a sweep"
        )


def monitored_validation(trainer: Trainer) -> str | None:
    """The validation's value that a callback monitors, if one does."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(callback, "monitor", ""))
        if monitor.startswith("val/"):
            return monitor
    return None


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether one batch of each kind is all (``fast_dev_run``): nothing is kept that others use."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def fit(
    trainer: Trainer,
    module: ClassifierModule,
    data: ImageDataModule,
    ckpt_path: Path | None,
    clock: Clock,
) -> None:
    """Train from the first step, or go on from the checkpoint; refuse weights that diverged.

    The network is in train mode, but for a base that carries an adapter (:mod:`.lora.frozen`). The
    Trainer's profiler is for the training alone, and taken off afterwards.
    """
    module.net.train()
    plan = data.plan
    learnt, others = len(plan.selection.target_indices), len(plan.selection.replay_indices)
    names = ", ".join(module.classes[c] for c in plan.selection.targets) or "all classes"
    log.info("training on %d images of %s", learnt, names)
    if plan.replay:
        log.info("replay: %d of %d others beside each %d", plan.replay, others, plan.batch_size)
    with clock.measure("fit"):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    for name, parameter in module.net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                f"optimizer.lr={module.optimizer.defaults['lr']}: training diverged, {name} is not "
                f"finite at step {trainer.global_step}; expected a smaller learning rate"
            )


def evaluate_on(
    trainer: Trainer,
    net: nn.Module,
    dataset: ImageDataset,
    images: Images,
    name: str,
    base: Predictions | None = None,
) -> Predictions:
    """The predictions of ``net`` for ``images``, on the Trainer's device and in its precision.

    The Trainer may limit the number of batches, of ``val`` as in validation, of all others as in a
    test. Where the network has an adapter, the base is evaluated beside it; ``base``: see
    :func:`.predictions.evaluate`.
    """
    batches = -(-len(images) // dataset.eval_batch_size)
    limit = trainer.limit_val_batches if name == "val" else trainer.limit_test_batches
    if limit is not None:
        share = int(limit * batches) if isinstance(limit, float) else limit
        batches = min(batches, share)
    indices = torch.arange(min(len(images), batches * dataset.eval_batch_size))
    device: Any = trainer.strategy.root_device
    precision: Any = trainer.precision_plugin
    with evaluating(net, device), precision.forward_context():
        return evaluate(net, dataset.batches(images, device, indices, name), base)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the ``with`` block, warnings of Lightning that do not apply here are hidden."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*your dataloader is not resumable.*",  # its place follows from the step
            ".*to use `self.log.*sync_dist=True.*",  # each process validates all images
            ".*length of `list` across ranks is zero.*",  # no validation, on purpose
            ".*in eval mode at the start of training.*",  # the base is, on purpose
            ".*smaller than the logging interval.*",  # the loss is logged by steps, not batches
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
