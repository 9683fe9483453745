"""Refusals and warnings around a training."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.net import eval_on_device
from lora_mnist.classifier.significance import knows_validation
from lora_mnist.data import ImageDataModule
from lora_mnist.data.plan import is_one_epoch
from lora_mnist.disk.base import Base
from lora_mnist.errors import TrainingError, UserError, is_number
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.project import Run

_info = rank_zero_only(logging.getLogger(__name__).info)
_warn = rank_zero_only(logging.getLogger(__name__).warning)

#: These settings make a repair run that has no validation images.
_WITHOUT = "; without any, say optimizer.lr=0.001 lora.scale=1"


def require_validation(setting: str, data: ImageDataModule, otherwise: str = "") -> None:
    """Refuse a setting such as ``dial=true`` if there are no validation images to decide it."""
    if not len(data.val_set):
        reason = f"{setting}: {data.no_validation}, since validation images decide"
        raise UserError(reason + otherwise)


def require_trainable(cfg: DictConfig, run: Run) -> None:
    """Refuse values of ``cfg`` that no training can have, before anything is made."""
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected an integer from 0 to {2**32 - 1}, or null")
    if {"digit", "target"} <= run.typed_keys:
        raise UserError(f"digit={cfg.digit}: expected target alone, since both mean the same")
    if cfg.resume is not None and run.is_sweep:
        raise UserError(f"resume={cfg.resume}: expected a single run; a sweep has sweep.resume")
    if cfg.stage == "pretrain" and cfg.target == "weakest":
        raise UserError("target=weakest: expected stage=lora: only a base has a weakest class")
    if cfg.stage == "pretrain" and cfg.base_ckpt is None:
        raise UserError("base_ckpt=null: expected a file to write the base to")
    for key in ("max_steps", "max_epochs"):  # Lightning would compare them with numbers as they are
        value = cfg.trainer.get(key, -1)
        if (key, value) != ("max_epochs", None) and (not isinstance(value, int) or value == 0):
            raise UserError(
                f"trainer.{key}={value}: expected a number of at least 1, or -1 for no end"
            )


def require_suitable(trainer: Trainer, run: Run) -> None:
    """Refuse a Trainer that does not suit a run."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise UserError(
                f"callbacks: {type(callback).__name__} would change what results.json names; "
                "expected data.batch_size=NUMBER, and optimizer.lr=NUMBER or auto"
            )
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(
                "callbacks: GradientAccumulationScheduler: expected "
                "trainer.accumulate_grad_batches=NUMBER, the same for all steps"
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


def require_consistent(cfg: DictConfig, trainer: Trainer, data: ImageDataModule) -> None:
    """Refuse values that are each right on their own, but not together, or not with ``data``."""
    scheduler, loss = cfg.scheduler or {}, cfg.loss
    if -1 in (scheduler.get("T_max"), scheduler.get("total_iters"), scheduler.get("total_steps")):
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    if is_one_epoch(trainer):
        reason = (
            "expected trainer.max_epochs=NUMBER, since a training of "
            f"trainer.max_steps={trainer.max_steps} alone is one epoch"
        )
        every = trainer.check_val_every_n_epoch
        if scheduler.get("interval") == "epoch":
            raise UserError(f"scheduler.interval=epoch: {reason}")
        if every is not None and every > 1:
            raise UserError(f"trainer.check_val_every_n_epoch={every}: {reason}")
    if cfg.optimizer.lr == "auto":
        if cfg.stage != "lora" or "max_lr" in scheduler:
            raise UserError(
                "optimizer.lr=auto: expected a number; only stage=lora finds one, and none for "
                "scheduler=one_cycle"
            )
        require_validation("optimizer.lr=auto", data, _WITHOUT)
    if cfg.stage == "pretrain":
        for key in ("loss.distill", "data.mistakes"):
            if value := OmegaConf.select(cfg, key):
                raise UserError(
                    f"{key}={value}: expected 0, or null, since stage=pretrain has no base"
                )
    if cfg.stage == "lora":
        scale = cfg.lora.scale
        if scale == "auto":
            require_validation("lora.scale=auto", data, _WITHOUT)
        elif not is_number(scale) or scale <= 0:
            raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
        if cfg.dial:
            require_validation("dial=true", data)
    if data.replay == 0 and loss.get("target_weight") is not None:
        raise UserError(
            f"loss.target_weight={loss.target_weight}: expected null, or data.replay > 0"
        )
    for key in ("batch_size", "replay"):
        size, processes = getattr(data, key), trainer.world_size
        if size % processes:
            raise UserError(f"data.{key}={size}: expected a multiple of the {processes} processes")
    interval = trainer.val_check_interval
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(callback, "monitor", ""))
        if not monitor.startswith("val/"):
            continue
        require_validation(f"callbacks: monitor={monitor}", data)
        if isinstance(interval, int) and 0 <= batches < interval:
            raise UserError(
                f"trainer.val_check_interval={interval}: expected at most {batches}, the batches "
                f"of trainer.max_steps={trainer.max_steps}, since {monitor} is monitored"
            )


def require_fixed_buffers(
    cfg: DictConfig, trainer: Trainer, net: nn.Module, data: ImageDataModule, base: Base
) -> None:
    """Refuse a network that changes its own tensors in a forward pass, such as a counter of calls.

    The proof after training would fail. The random generators stay as they were.
    """
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), eval_on_device(net, device), torch.no_grad():
        net(data.normalise(data.train_set.take([0])[0].to(device)))
    if changed := changed_tensors(base.tensors, base_state_dict(net)):
        raise UserError(
            f"net._target_={cfg.net._target_}: expected a network that changes no tensor of its "
            f"own while it predicts, since the base is kept bit for bit; {changed[0]} has changed"
        )


def require_unchanged(base: Base, net: nn.Module) -> None:
    """Prove that the base in ``net`` is what it was, bit for bit."""
    changed = changed_tensors(base.tensors, base_state_dict(net))
    if changed:
        raise RuntimeError(f"training the adapter changed the base: {', '.join(changed)}")
    _info("base unchanged: %d tensors, bit for bit", len(base.tensors))


def warn_of_known_validation(outcomes: Mapping[str, Any], data: ImageDataModule) -> None:
    """Warn if the base makes far fewer errors on validation images than on test images.

    Where mistakes were left out of either, what is left cannot be compared.
    """
    is_whole = len(data.val_set) == len(data.sets[1]) and len(data.test_set) == len(data.sets[2])
    if "val_base" not in outcomes or not is_whole:
        return
    val, test = outcomes["val_base"], outcomes["test_base"]
    if knows_validation(val, test):
        _warn(
            "the base has probably been trained on the validation images: it has %d of %d wrong, "
            "and %d of %d test images. Their advice may do harm; expected images in val/ that "
            "it has not seen, or data.val_from=test",
            val["errors"],
            sum(val["images_per_class"]),
            test["errors"],
            sum(test["images_per_class"]),
        )


def majority_baseline_failure(
    trainer: Trainer, module: ClassifierModule, data: ImageDataModule
) -> str | None:
    """Why a network is useless: it is right no more often than by always saying the same class.

    ``None`` if it is better, if its base was no better, or if this is a trial of a batch.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    split = "val" if "val" in module.outcomes else "test"
    outcome = module.outcomes[split]
    images, accuracy = outcome["images_per_class"], outcome["accuracy"]
    share = max(images) / sum(images)
    before = module.outcomes.get(f"{split}_{module.compared_with}")
    if accuracy > share or (before is not None and before["accuracy"] <= share):
        return None
    commonest = data.classes[images.index(max(images))]
    return (
        f"optimizer.lr={module.lr}: {accuracy:.1%} of the {split} images are right, no more "
        f"than by always saying {commonest}; expected another learning rate"
    )


def require_better_than_one_class(
    trainer: Trainer, module: ClassifierModule, data: ImageDataModule
) -> None:
    """Fail, if training has made a network useless; its results are kept."""
    if reason := majority_baseline_failure(trainer, module, data):
        raise TrainingError(reason)
