"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from omegaconf import DictConfig

from lora_mnist.checks import require_suitable
from lora_mnist.data.make import user_code_importable
from lora_mnist.disk.checkpoint import AtomicCheckpointIO, RandomStates, step_of
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import UserError, config_group
from lora_mnist.project import Run


def make_trainer(cfg: DictConfig, run: Run) -> Trainer:
    """Lightning's Trainer as ``cfg.trainer`` has it, with ``cfg.callbacks`` and ``cfg.logger``.

    Callbacks and plugins of ``cfg.trainer`` are added to the configured ones; a logger there
    replaces all others.

    Raises:
        UserError: if a value cannot be used, or the Trainer does not suit a run.
    """
    callbacks: list[Any] = [RandomStates(), RequireWholeSchedule()]
    for name, config in (cfg.get("callbacks") or {}).items():
        if config is not None:
            with user_code_importable(cfg), config_group(f"callbacks.{name}"):
                callbacks.append(instantiate(config))
    loggers: list[Any] = []
    for name, config in (cfg.logger or {}).items():
        if config is None:
            continue
        changes = {}
        if "purge_step" in config and cfg.get("resume") is not None:
            # Steps after the checkpoint are logged again.
            changes["purge_step"] = step_of(run.folder / LAST_CHECKPOINT)
        with config_group(f"logger.{name}"):
            loggers.append(instantiate(config, **changes))
    with config_group("trainer"):
        # The arguments alone: the Trainer is made below.
        arguments = dict(instantiate(cfg.trainer, _convert_="all", _partial_=True).keywords)
        callbacks += arguments.pop("callbacks", None) or []
        # A file would keep each state of the bar.
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        defaults: dict[str, Any] = {
            "logger": loggers or False,
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
        }
        trainer = Trainer(
            default_root_dir=str(run.folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *(arguments.pop("plugins", None) or [])],
            use_distributed_sampler=False,  # the data module shards, and counts no image twice
            **defaults | arguments,
        )
    require_suitable(trainer, run)
    if trainer.world_size > 1:  # only the Trainer knows how many processes there are
        trainer.callbacks.insert(0, PlainSigterm())  # type: ignore[attr-defined]
    return trainer


def is_fast_dev_run(trainer: Trainer) -> bool:
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
