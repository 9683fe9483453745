"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from lora_mnist.choice import AUTO
from lora_mnist.config.make import make
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError, config_group
from lora_mnist.project import importable
from lora_mnist.training.checkpoint import AtomicCheckpointIO

log = logging.getLogger(__name__)

#: Between two lines of the log that say how far a training is.
_SECONDS_BETWEEN_LINES = 30


class ProgressInLog(Callback):
    """Logs a line at each validation, and every half minute between two of them."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the training among several

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first, self.started = trainer.global_step, time.monotonic()
        self.last_line_at = self.started

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if time.monotonic() - self.last_line_at > _SECONDS_BETWEEN_LINES:
            self.tell(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.tell(trainer, "train/loss", "val/errors_of_target", "val/errors")

    def tell(self, trainer: Trainer, *keys: str) -> None:
        """Log how far the training is, and the values of these keys, as far as there are any."""
        self.last_line_at = time.monotonic()
        step, steps = trainer.global_step, trainer.estimated_stepping_batches
        line = f"step {step:,}"
        if steps < float("inf"):
            left = (steps - step) * (self.last_line_at - self.started) / max(1, step - self.first)
            line += f" of {steps:,}, {timedelta(seconds=round(left))} left in {self.name}"
        for key in keys:
            if key in trainer.callback_metrics:
                line += f", {key} {trainer.callback_metrics[key]:.4g}"
        log.info(line)


def make_trainer(
    cfg: DictConfig,
    run: Run,
    training: str = "this training",  # its name in the log
    keeps_checkpoints: bool = True,
    loggers: Sequence[Logger] | None = None,  # in place of new ones
) -> Trainer:
    """Lightning's Trainer as ``cfg.trainer`` has it, with ``cfg.callbacks`` and ``cfg.logger``."""
    callbacks = _made_of(cfg, "callbacks")
    loggers = _made_of(cfg, "logger") if loggers is None else loggers
    with importable(), config_group("trainer"):
        # The arguments alone: the Trainer is made below.
        constructor = instantiate(cfg.trainer, _convert_="all", _partial_=True)
        arguments = dict(constructor.keywords)
        callbacks += arguments.pop("callbacks", None) or []
        if not keeps_checkpoints:
            callbacks = [each for each in callbacks if not isinstance(each, Checkpoint)]
        # A file would keep each state of the bar.
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        if not has_bar:
            callbacks.append(ProgressInLog(training))
        defaults: dict[str, Any] = {
            "logger": list(loggers) or False,
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
        }
        if torch.accelerator.is_available() and arguments.get("accelerator") != "cpu":
            defaults["deterministic"] = "warn"  # on a GPU, too, a seed gives the same numbers
        arguments["limit_val_batches"] = 1.0  # of images that the session has limited
        if arguments.get("max_steps") == AUTO:  # each training has a Trainer with a number
            arguments["max_steps"] = -1
        trainer: Trainer = constructor.func(
            default_root_dir=str(run.folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *(arguments.pop("plugins", None) or [])],
            use_distributed_sampler=False,  # each process has its share of the plan's batches
            **defaults | arguments,
        )
    _refuse_unsuitable(trainer, run, cfg.stage)
    if not trainer.is_global_zero:  # the first process says it for all
        logging.getLogger("lora_mnist").setLevel(logging.ERROR)
    return trainer


def _made_of(cfg: DictConfig, group: str) -> list[Any]:
    """The parts of a group that are not switched off; ``~logger`` leaves none."""
    made = []
    for name, config in (cfg.get(group) or {}).items():
        if config is not None:
            made.append(make(f"{group}.{name}", config))
    return made


def _refuse_unsuitable(trainer: Trainer, run: Run, stage: str) -> None:
    """Refuse a Trainer that would do something else than what results.json says."""
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    if trainer.world_size > 1 and (run.is_sweep or stage == "eval"):
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected one process for stage=eval, and for "
            "each job of a sweep"
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the ``with`` block, warnings of Lightning that do not apply here are hidden."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*dirpath has changed.*",  # a run that goes on has a folder of its own
            ".*to use `self.log.*sync_dist=True.*",  # torchmetrics has gathered what is logged
            ".*length of `list` across ranks is zero.*",  # no validation, on purpose
            ".*smaller than the logging interval.*",  # the loss is logged by steps, not batches
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
