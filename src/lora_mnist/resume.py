"""Going on with an interrupted run from its checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from lora_mnist.errors import UserError
from lora_mnist.module import ClassifierModule


def require_resumable(cfg: DictConfig, module: ClassifierModule, trainer: Trainer) -> None:
    """Refuse a checkpoint of another base or adapter, or with nothing left to do."""
    checkpoint = _read_checkpoint(Path(cfg.ckpt_path), cfg.stage)
    for key in ("base_sha256", "net", "lora"):
        saved, here = checkpoint["hyper_parameters"].get(key), module.hparams.get(key)
        if saved != here:
            raise UserError(
                f"ckpt_path={cfg.ckpt_path}: expected {key}={here}, as configured; "
                f"it was trained with {key}={saved}"
            )
    if 0 <= trainer.max_steps <= (step := checkpoint["global_step"]):
        raise UserError(
            f"trainer.max_steps={trainer.max_steps}: expected more than the {step} steps of "
            f"ckpt_path={cfg.ckpt_path}"
        )


def _read_checkpoint(path: Path, stage: str) -> dict[str, Any]:
    """What a run of ``stage`` saved; nothing is unpickled but plain values and tensors."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["hyper_parameters"]["stage"]
    except Exception as error:  # torch.load has no common class for what a damaged file causes
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of stage={stage}; "
            f"this file is damaged or something else ({type(error).__name__})"
        ) from error
    if found != stage:
        raise UserError(f"ckpt_path={path}: expected a checkpoint of stage={stage}, not {found}")
    return checkpoint
