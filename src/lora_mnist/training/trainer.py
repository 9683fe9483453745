"""Lightning's Trainer, with the callbacks and loggers that the configuration names."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from lora_mnist.choice import AUTO
from lora_mnist.config.make import instantiate_part
from lora_mnist.config.run import Run
from lora_mnist.errors import ArgumentError, UserError, report_group_errors, require_extra
from lora_mnist.project import import_from_here
from lora_mnist.training.callbacks import LogProgress
from lora_mnist.training.checkpoint import AtomicCheckpointIO


def make_trainer(
    cfg: DictConfig,
    run: Run,
    training: str = "this training",  # its name in the log
    keeps_checkpoints: bool = True,
    loggers: Sequence[Logger] | None = None,  # in place of new ones
) -> Trainer:
    """Build the Trainer of ``cfg.trainer``, with ``cfg.callbacks`` and ``cfg.logger``."""
    callbacks = _instantiate_group(cfg, "callbacks")
    loggers = _instantiate_group(cfg, "logger") if loggers is None else loggers
    with import_from_here(), report_group_errors("trainer"):
        # The arguments alone: the Trainer is made below.
        constructor = instantiate(cfg.trainer, _convert_="all", _partial_=True)
        arguments = dict(constructor.keywords)
        callbacks += arguments.pop("callbacks", None) or []
        if not keeps_checkpoints:
            callbacks = [each for each in callbacks if not isinstance(each, Checkpoint)]
        # In a file, a progress bar would leave a line for each of its updates.
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        if not has_bar:
            callbacks.append(LogProgress(training))
        defaults: dict[str, Any] = {
            "logger": list(loggers) or False,
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
        }
        accelerator, is_here = arguments.get("accelerator"), torch.accelerator.is_available()
        if accelerator in ("gpu", "cuda", "mps") and not is_here:
            expected = "auto or cpu, since torch finds none here: trainer=cpu"
            raise ArgumentError("accelerator", accelerator, f"expected {expected}")
        if is_here and accelerator != "cpu":
            defaults["deterministic"] = "warn"  # on a GPU, too, a seed gives the same numbers
        arguments["limit_val_batches"] = 1.0  # of images that the session has limited
        if arguments.get("max_steps") == AUTO:  # each training's Trainer has the number
            arguments["max_steps"] = -1
        trainer: Trainer = constructor.func(
            default_root_dir=str(run.folder),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *(arguments.pop("plugins", None) or [])],
            use_distributed_sampler=False,  # each process has its share of the plan's batches
            **defaults | arguments,
        )
    _refuse_unsuitable(trainer, run, cfg.stage)
    if not trainer.is_global_zero:  # only the first process logs it
        logging.getLogger("lora_mnist").setLevel(logging.ERROR)
    return trainer


def _instantiate_group(cfg: DictConfig, group: str) -> list[Any]:
    """Make the objects of a group that are not null; with ``~logger`` there are none."""
    made = []
    for name, config in (cfg.get(group) or {}).items():
        if config is not None:
            if name in ("mlflow", "wandb"):  # Lightning's message would name other versions
                require_extra(f"{group}={name}", name, name)
            made.append(instantiate_part(f"{group}.{name}", config))
    return made


def _refuse_unsuitable(trainer: Trainer, run: Run, stage: str) -> None:
    """Raise if the Trainer would compute something else than results.json reports."""
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
    """Hide warnings of Lightning that do not apply here inside the ``with`` block."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*dirpath has changed.*",  # a run that goes on has a folder of its own
            ".*to use `self.log.*sync_dist=True.*",  # torchmetrics has gathered the logged values
            ".*length of `list` across ranks is zero.*",  # no validation, on purpose
            ".*smaller than the logging interval.*",  # the loss is logged by steps, not batches
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
