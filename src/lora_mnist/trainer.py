"""Lightning's Trainer: built from a configuration, checked, and guarded while it works."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig

from lora_mnist.errors import UserError, config_group, one_line


def build_trainer(cfg: DictConfig, folder: Path, validates: bool = True) -> Trainer:
    """Lightning's Trainer with the configured callbacks and logger; a bar only on a terminal.

    Args:
        cfg: the run's configuration.
        folder: the run's folder, where logger and checkpoints write.
        validates: whether there are validation images.

    Raises:
        UserError: if a value of ``cfg`` cannot be used.
    """
    accelerator = cfg.trainer.accelerator
    if isinstance(accelerator, str) and accelerator not in (available := _accelerators()):
        raise UserError(
            f"trainer.accelerator={accelerator}: not on this machine; "
            f"expected one of {', '.join(available)}"
        )
    settings: dict[str, Any] = {"default_root_dir": str(folder)}
    if not validates:
        settings["limit_val_batches"] = 0
    with config_group("callbacks"):
        callbacks = [_callback(c, folder) for c in (cfg.get("callbacks") or {}).values() if c]
    if not sys.stdout.isatty():  # into a pipe or a file: no bar, only what is worth keeping
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        settings["enable_progress_bar"] = False
    # Without a callback of ours Lightning would add one of its own.
    keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
    settings["enable_checkpointing"] = cfg.trainer.get("enable_checkpointing", keeps)
    with config_group("logger"):
        logger = instantiate(cfg.logger, save_dir=str(folder)) if cfg.get("logger") else False
    try:
        trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=logger, **settings)
    except InstantiationException as error:
        reason = one_line(error.__cause__ or error)
        quoted = [f"`{key}" for key in cfg.trainer] + [f"{key}=" for key in cfg.trainer]
        named = [name.strip("`=") for name in quoted if name in reason]
        key = f"trainer.{named[0]}={cfg.trainer[named[0]]}" if named else "trainer"
        raise UserError(f"{key}: {reason}") from error
    _check_trainer(trainer)
    return trainer


def _callback(config: DictConfig, folder: Path) -> Any:
    """A callback; one whose ``dirpath`` is null writes its checkpoints into the run's folder."""
    if "dirpath" in config and config.dirpath is None:
        return instantiate(config, dirpath=str(folder / "checkpoints"))
    return instantiate(config)


def _check_trainer(trainer: Trainer) -> None:
    """Refuse what Lightning accepts and a run here cannot do."""
    if not trainer.limit_test_batches:
        raise UserError("trainer.limit_test_batches=0: expected > 0, since a run ends in a test")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: expected >= 1"
        )
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping and trainer.world_size > 1:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected one process for each job of a sweep"
        )


def _accelerators() -> list[str]:
    """What ``trainer.accelerator`` accepts on this machine."""
    names = [n for n, a in AcceleratorRegistry.items() if a["accelerator"].is_available()]
    return ["auto", *names, *(["gpu"] if {"cuda", "mps"} & set(names) else [])]


@contextmanager
def trainer_at_work() -> Iterator[None]:
    """Around a call of the Trainer: some options Lightning checks only when it has the data."""
    with warnings.catch_warnings():
        # A loader over tensors in memory has nothing for worker processes to do.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Between Lightning and torch; nothing a user could act on.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        try:
            yield
        except MisconfigurationException as error:
            raise UserError(f"trainer: {one_line(error)}") from error
