"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    LearningRateFinder,
    ProgressBar,
)
from omegaconf import DictConfig

from lora_mnist.disk.checkpoint import AtomicCheckpointIO, RandomStates, step_of
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import UserError, config_group
from lora_mnist.progress import TrainerProgress
from lora_mnist.project import Run


def make_trainer(cfg: DictConfig, run: Run) -> Trainer:
    """Lightning's Trainer as ``cfg.trainer`` has it, with ``cfg.callbacks`` and ``cfg.logger``.

    Callbacks and plugins of ``cfg.trainer`` are added to the configured ones; a logger there
    replaces all others.

    Raises:
        UserError: if a value cannot be used, or the Trainer does not suit a run.
    """
    for key in ("max_steps", "max_epochs"):
        value = cfg.trainer.get(key, -1)
        if value is None and key == "max_epochs":  # Lightning then chooses
            continue
        if type(value) is not int or value < -1:
            value = "null" if value is None else value
            raise UserError(f"trainer.{key}={value}: expected a whole number, or -1 for no end")
    has_gpu = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if cfg.trainer.get("accelerator") == "gpu" and not has_gpu:
        raise UserError("trainer.accelerator=gpu: torch finds no GPU here; expected auto, or cpu")
    callbacks: list[Any] = [RandomStates(), RequireWholeSchedule()]
    for name, config in (cfg.get("callbacks") or {}).items():
        if config is not None:
            with config_group(f"callbacks.{name}"):
                callbacks.append(instantiate(config))
    loggers: list[Any] = []
    for name, config in (cfg.logger or {}).items():
        if config is None:
            continue
        changes = {}
        if "purge_step" in config and cfg.get("resume") is not None:
            # What was logged after the checkpoint is logged again.
            changes["purge_step"] = step_of(run.folder / LAST_CHECKPOINT)
        with config_group(f"logger.{name}"):
            loggers.append(instantiate(config, **changes))
    with config_group("trainer"):
        # The arguments alone: the Trainer is made below.
        arguments = dict(instantiate(cfg.trainer, _convert_="all", _partial_=True).keywords)
        for key in ("default_root_dir", "use_distributed_sampler"):
            if key in arguments:
                raise ValueError(
                    f"{key}={arguments[key]}: expected no such key, since the run sets it; its "
                    "folder is hydra.run.dir"
                )
        callbacks += arguments.pop("callbacks", None) or []
        if not sys.stdout.isatty():
            callbacks.append(TrainerProgress())
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        defaults: dict[str, Any] = {
            "default_root_dir": str(run.folder),
            "callbacks": callbacks,
            "logger": loggers or False,
            "plugins": [AtomicCheckpointIO(), *(arguments.pop("plugins", None) or [])],
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
            "use_distributed_sampler": False,  # the data module shards, and counts no image twice
        }
        trainer = Trainer(**defaults | arguments)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise UserError(
                f"callbacks: {type(callback).__name__} would train before each stage; expected "
                "data.batch_size=NUMBER, and optimizer.lr=NUMBER or auto"
            )
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    if not trainer.limit_test_batches:
        raise UserError("trainer.limit_test_batches=0: expected > 0, since a run ends in a test")
    if trainer.world_size > 1:
        if run.is_sweep:
            raise UserError(
                f"trainer.devices={trainer.num_devices}: expected one process for each job of a "
                "sweep"
            )
        # Only the Trainer knows how many processes there are.
        trainer.callbacks.insert(0, PlainSigterm())  # type: ignore[attr-defined]
    return trainer


def is_trial(trainer: Trainer) -> bool:
    """Whether one batch of each kind is all (``fast_dev_run``): nothing is kept that others use."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


class PlainSigterm(Callback):
    """SIGTERM keeps the handler from before training; all processes but the first end at once.

    Lightning 2.6 tells the other processes from within its signal handler, by a broadcast that
    waits for ever where the signal comes during another one.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Remember the handler, before Lightning sets its own."""
        self.handler = signal.getsignal(signal.SIGTERM)
        if not trainer.is_global_zero:
            self.handler = signal.SIG_DFL

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


class RequireWholeSchedule(Callback):
    """Refuses epochs that would end training in the middle of a schedule that counts steps."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        steps = trainer.estimated_stepping_batches
        for config in trainer.lr_scheduler_configs:
            for key in ("T_max", "total_iters", "total_steps"):
                counted = getattr(config.scheduler, key, 0)
                if config.interval == "step" and counted > steps:
                    raise UserError(
                        f"trainer.max_epochs={trainer.max_epochs}: ends training after {steps:g} "
                        f"of scheduler.{key}={counted} steps; expected trainer.max_epochs=-1, or "
                        f"trainer.max_steps={steps:g}"
                    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the ``with`` block, warnings of Lightning that do not apply here are hidden."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*in eval mode at the start of training.*",  # the base is, on purpose
            ".*smaller than the logging interval.*",  # the loss is logged by steps, not batches
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
