"""Lightning's Trainer: built from a configuration, checked, and guarded while it works."""

import csv
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
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig

from lora_mnist.disk.checkpoint import AtomicCheckpointIO
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.runs import CHECKPOINTS
from lora_mnist.show.tensorboard import Curves
from lora_mnist.trainer_settings import check_settings

#: How often a single run is validated, since somebody may watch it; a sweep's job is at its end.
_VALIDATIONS = 4


def build_trainer(
    cfg: DictConfig,
    folder: Path,
    validates: bool = True,
    step: int | None = None,
    name: str = "",
) -> Trainer:
    """Lightning's Trainer with the configured callbacks and logger; a bar only on a terminal.

    Args:
        cfg: the run's configuration.
        folder: the run's folder, where logger and checkpoints write.
        validates: whether there are validation images.
        step: the step after which an earlier run is gone on with; ``None``: a new run.
        name: what the logger calls the run, where it asks for one (``version: null``).

    Raises:
        UserError: if a value of ``cfg`` cannot be used.
    """
    accelerator = cfg.trainer.accelerator
    if isinstance(accelerator, str) and accelerator not in (available := _accelerators()):
        raise UserError(
            f"trainer.accelerator={accelerator}: not on this machine; "
            f"expected one of {', '.join(available)}"
        )
    check_settings(cfg.trainer)
    settings: dict[str, Any] = {"default_root_dir": str(folder)}
    if not validates:
        settings["limit_val_batches"] = 0
    callbacks = [
        _callback(f"callbacks.{name}", callback, folder)
        for name, callback in (cfg.get("callbacks") or {}).items()
        if callback
    ]
    if not sys.stdout.isatty():  # into a pipe or a file: no bar, only what is worth keeping
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        settings["enable_progress_bar"] = False
    # Without a callback of ours Lightning would add one of its own.
    keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
    settings["enable_checkpointing"] = cfg.trainer.get("enable_checkpointing", keeps)
    with config_group("logger"):
        logger = _logger(cfg.logger, folder, step, name) if cfg.get("logger") else False
    if logger:
        callbacks.append(Curves())
        settings |= {} if _is_sweeping() else _validations(cfg)
    parts = {"callbacks": callbacks, "logger": logger, "plugins": [AtomicCheckpointIO()]}
    try:
        trainer: Trainer = instantiate(cfg.trainer, **parts, **settings)
    except InstantiationException as error:
        reason = one_line(error.__cause__ or error)
        quoted = [f"`{key}" for key in cfg.trainer] + [f"{key}=" for key in cfg.trainer]
        named = [name.strip("`=") for name in quoted if name in reason]
        key = f"trainer.{named[0]}={cfg.trainer[named[0]]}" if named else "trainer"
        raise UserError(f"{key}: {reason}") from error
    _check_trainer(trainer)
    return trainer


def _callback(key: str, config: DictConfig, folder: Path) -> Any:
    """A callback; one whose ``dirpath`` is null writes its checkpoints into the run's folder."""
    changes = {"dirpath": str(folder / CHECKPOINTS)} if _is_null(config, "dirpath") else {}
    with config_group(key):
        return instantiate(config, **changes)


def _is_null(config: DictConfig, key: str) -> bool:
    return key in config and config[key] is None


def _validations(cfg: DictConfig) -> dict[str, Any]:
    """Validate a few times on the way, so that a logger has a curve; no number depends on it."""
    if any(key in cfg.trainer for key in ("val_check_interval", "check_val_every_n_epoch")):
        return {}
    steps = cfg.trainer.max_steps
    if type(steps) is not int or steps < 0:
        return {"val_check_interval": 1 / _VALIDATIONS}  # of an epoch
    batches = steps * max(1, cfg.trainer.get("accumulate_grad_batches", 1))
    return {
        "val_check_interval": max(1, batches // _VALIDATIONS),
        "check_val_every_n_epoch": None,  # counted over epochs
    }


def _logger(config: DictConfig, folder: Path, step: int | None, name: str) -> Any:
    """The logger; after ``step`` it drops what an earlier run has logged of later steps.

    What is logged after n steps is labelled n; before the first step all is logged again.
    """
    settings = {
        "save_dir": str(folder),
        **({"version": name} if _is_null(config, "version") else {}),
    }
    for key, accepted in {"name": str | None, "version": str | int | None}.items():
        if not isinstance(value := config.get(key), accepted):
            raise UserError(f"logger.{key}={value}: expected a name")
    logger: Any = instantiate(config, **settings)
    if step is None:
        return logger
    if isinstance(logger, TensorBoardLogger):
        return instantiate(config, **settings, purge_step=step + 1 if step else 0)
    if isinstance(logger, CSVLogger):
        _keep_rows(logger, step or -1)
    return logger


def _keep_rows(logger: CSVLogger, step: int) -> None:
    """Log the rows of steps to ``step`` again: the logger begins its file anew."""
    path = Path(logger.log_dir) / "metrics.csv"
    before = path.with_name("metrics.before.csv")
    if path.exists() and not before.exists():
        path.replace(before)
    if not before.exists():
        return
    with before.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder is not empty
        for row in rows:
            number = int(row.pop("step"))
            logger.log_metrics({key: value for key, value in row.items() if value}, number)  # type: ignore[misc]
        logger.save()
    before.unlink()


def _check_trainer(trainer: Trainer) -> None:
    """Refuse what Lightning accepts and a run here cannot do."""
    if not trainer.limit_test_batches:
        raise UserError("trainer.limit_test_batches=0: expected > 0, since a run ends in a test")
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    if _is_sweeping() and trainer.world_size > 1:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected one process for each job of a sweep"
        )


def _is_sweeping() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


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
        # It is: checkpoints keep the place in the images.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        # Between Lightning and torch; nothing a user could act on.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        try:
            yield
        except MisconfigurationException as error:
            raise UserError(f"trainer: {one_line(error)}") from error
