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
from lora_mnist.disk.checkpoint import AtomicCheckpointIO, LastCheckpoint, step_of
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import config_group
from lora_mnist.progress import TrainerProgress
from lora_mnist.project import Run


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
            with config_group(f"callbacks.{name}"):
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
        if not sys.stdout.isatty():
            callbacks.append(TrainerProgress())
        # After the others, whose states it saves.
        callbacks.sort(key=lambda each: isinstance(each, LastCheckpoint))
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
        trainer.callbacks.append(PlainSigterm())  # type: ignore[attr-defined]
    return trainer


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether one batch of each kind is all (``fast_dev_run``): nothing is kept that others use."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


class PlainSigterm(Callback):
    """SIGTERM does what it did before training; all processes but the first end at once.

    Lightning 2.6 answers it by a broadcast, which hangs if the signal comes during another one.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)  # Lightning sets its own after this

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        handler = self.handler if trainer.is_global_zero else signal.SIG_DFL
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the ``with`` block, warnings of Lightning that do not apply here are hidden."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*your dataloader is not resumable.*",  # its place follows from the step
            ".*in eval mode at the start of training.*",  # the base is, on purpose
            ".*smaller than the logging interval.*",  # the loss is logged by steps, not batches
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
