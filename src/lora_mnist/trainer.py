"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
)
from omegaconf import DictConfig

from lora_mnist.command import Run
from lora_mnist.disk.resume import AtomicCheckpointIO, LastCheckpoint, step_of
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import UserError, config_group
from lora_mnist.repair.networks import importable

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
            with importable(), config_group(f"callbacks.{name}"):
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
    with importable(), config_group("trainer"):
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
                "expected batches.batch_size, optimizer.lr and trainer.accumulate_grad_batches"
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
