"""Refusals and warnings around a training."""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.significance import knows_validation
from lora_mnist.data import ImageDataModule
from lora_mnist.errors import TrainingError, UserError, is_number

_warn = rank_zero_only(logging.getLogger(__name__).warning)


def require_validation(setting: str, data: ImageDataModule) -> None:
    """Refuse a ``setting``, ``key=value``, that validation images decide, where there are none."""
    if not len(data.val_set):
        raise UserError(f"{setting}: expected data.val_size > 0, since validation images decide")


def check_scale_and_dial(cfg: DictConfig, data: ImageDataModule) -> None:
    """Refuse a scale for the finished adapter that is none, or that nothing can choose."""
    scale = cfg.lora.scale
    if scale == "auto":
        require_validation("lora.scale=auto", data)
    elif not is_number(scale) or scale <= 0:
        raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
    if cfg.dial:
        require_validation("dial=true", data)


def require_runnable(trainer: Trainer, data: ImageDataModule) -> None:
    """Refuse batches that the processes cannot share.

    Where callbacks choose by validation images, refuse also a training without any, and one that
    ends before its first validation.
    """
    for key in ("batch_size", "replay"):
        size, processes = getattr(data, key), trainer.world_size
        if size % processes:
            raise UserError(f"data.{key}={size}: expected a multiple of the {processes} processes")
    interval, steps = trainer.val_check_interval, trainer.max_steps
    batches = steps * trainer.accumulate_grad_batches
    monitors = [str(getattr(each, "monitor", "")) for each in trainer.callbacks]  # type: ignore[attr-defined]
    monitors = [monitor for monitor in monitors if monitor.startswith("val/")]
    if monitors:
        require_validation(f"callbacks: monitor={monitors[0]}", data)
    if monitors and isinstance(interval, int) and 0 <= batches < interval:
        raise UserError(
            f"trainer.val_check_interval={interval}: expected at most {batches}, the batches of "
            f"trainer.max_steps={steps}, since callbacks choose by validation images"
        )


def warn_of_known_validation(outcomes: Mapping[str, Any]) -> None:
    """Warn if the base makes far fewer errors on validation images than on test images."""
    if "val_base" in outcomes and knows_validation(outcomes["val_base"], outcomes["test_base"]):
        _warn(
            "the base has probably been trained on the validation images: it has %d of %d wrong, "
            "and %d of %d test images. What they advise may do harm; expected images in val/ that "
            "it has not seen, or data.val_from=test",
            *(outcomes["val_base"]["errors"], sum(outcomes["val_base"]["images_per_class"])),
            *(outcomes["test_base"]["errors"], sum(outcomes["test_base"]["images_per_class"])),
        )


def why_useless(cfg: DictConfig, module: ClassifierModule, data: ImageDataModule) -> str | None:
    """Why a network is useless: it is right no more often than one that always says one class.

    ``None`` if it is better, or if its base was no better.
    """
    split = "val" if "val" in module.outcomes else "test"
    counts, accuracy = (module.outcomes[split][key] for key in ("images_per_class", "accuracy"))
    share = max(counts) / sum(counts)
    before = module.outcomes.get(f"{split}_base", {"accuracy": 1.0})["accuracy"]
    if accuracy > share or before <= share:
        return None
    commonest = data.classes[counts.index(max(counts))]
    return (
        f"optimizer.lr={module.lr}: {accuracy:.1%} of the {split} images are right, no more "
        f"than by always saying {commonest}; expected another learning rate"
    )


def require_not_ruined(cfg: DictConfig, module: ClassifierModule, data: ImageDataModule) -> None:
    """Fail, if training has made a network useless; its results are kept."""
    if useless := why_useless(cfg, module, data):
        raise TrainingError(useless)
