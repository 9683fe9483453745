"""The one path from a configuration to results.json: build, fit, test, write."""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lora_mnist.adapter import changed_tensors, fingerprint, save_adapter
from lora_mnist.build import (
    add_configured_lora,
    build_data,
    build_module,
    build_net,
    build_trainer,
    choose_trainable,
    load_adapters,
    load_base,
    rate_training_images,
    read_checkpoint,
    require_bool,
)
from lora_mnist.data import MNISTDataModule
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.files import atomic_write
from lora_mnist.lora import base_state_dict, lora_names, set_lora_enabled
from lora_mnist.memory import keep_freed_memory
from lora_mnist.module import ClassifierModule
from lora_mnist.report import count_parameters, report_parameters, report_results

log = logging.getLogger(__name__)
_info = rank_zero_only(log.info)

# A loader over tensors in memory has nothing for worker processes to do.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
# What is logged at the end of an epoch comes from torchmetrics, which has synchronised it.
warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
# data.val_size=0 is a choice.
warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
# Between Lightning and torch; nothing a user could act on.
warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run one stage: pretrain a base, or fine-tune an adapter on it and prove the base untouched.

    Leaves results.json, the checkpoint, the log and the logger's files in the run's folder; then
    ``stage=pretrain`` replaces ``cfg.base_ckpt``, and ``stage=lora`` leaves the adapter.
    ``stage=finetune`` trains chosen parameters of the base itself, to compare with; its result is
    the checkpoint alone.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        RuntimeError: if fine-tuning changed the base.
    """
    clock = _Clock()
    _prepare_process(cfg)
    if cfg.stage == "pretrain":
        _check_base_path(cfg.base_ckpt)
    net = build_net(cfg)
    if cfg.digit == "weakest":
        cfg.digit = find_weakest(cfg, net)
    data = build_data(cfg)
    base = None if cfg.stage == "pretrain" else load_base(cfg, net)
    if base is not None and data.hardness:
        rate_training_images(cfg, net, base, data)
    if cfg.stage == "lora":
        add_configured_lora(cfg, net)
    elif cfg.stage == "finetune":
        choose_trainable(net, cfg.trainable)
    module = build_module(cfg, net, data, base)
    trainer = build_trainer(cfg)
    with config_group("data"):
        data.batch_size_per_process(trainer.world_size)
    if cfg.ckpt_path is not None:
        _check_resumable(cfg, module, trainer)
    report_parameters(net)
    _info("%s on %s training images", cfg.stage, f"{len(data.train_set):,}")
    with clock.measure("fit"), _trainer_mistakes():
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    _check_trained(cfg, net, trainer)
    if cfg.stage == "lora":
        assert base is not None
        _require_unchanged(base.tensors, net)
    if data.val_size and module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    with clock.measure("test"), _trainer_mistakes():
        trainer.test(module, datamodule=data, verbose=False)
    results = _results(cfg, data, module, trainer, clock)
    if trainer.is_global_zero:
        folder = Path(cfg.paths.run)
        if cfg.stage == "lora":
            save_adapter(net, folder / "adapter", metadata={"dataset": cfg.data.name})
            results |= {"base_unchanged": True, "adapter": "adapter"}
        elif base is not None:
            results |= {"base_unchanged": False, "base_sha256": base.sha256}
        elif not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _save_base(module, Path(cfg.base_ckpt))
        _conclude(results, data, folder)
    return results


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Test saved adapters: the base and the base with them on the same images.

    ``cfg.adapter`` is as for :func:`load_adapters`; ``cfg.each`` tests each one alone too.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """
    clock = _Clock()
    _prepare_process(cfg)
    require_bool(cfg, "each")
    data = build_data(cfg)
    net = build_net(cfg)
    base = load_base(cfg, net)
    adapters = load_adapters(cfg, net)
    if not adapters:
        raise UserError("adapter=null: expected the folder of an adapter")
    module = build_module(cfg, net, data, base)
    trainer = build_trainer(cfg)
    each = {}
    with clock.measure("test"):
        if cfg.each:
            each = {"each": _test_each(module, trainer, data)}
        trainer.test(module, datamodule=data, verbose=False)
    results = _results(cfg, data, module, trainer, clock) | each
    results["adapter"] = OmegaConf.to_container(cfg, resolve=True)["adapter"]  # type: ignore[call-overload,index]
    if trainer.is_global_zero:
        _conclude(results, data, Path(cfg.paths.run))
    return results


def _test_each(
    module: ClassifierModule, trainer: Trainer, data: MNISTDataModule
) -> dict[str, dict[str, Any]]:
    """What each adapter does alone, by its name, as results.json has it."""
    loggers, trainer.loggers = trainer.loggers, []  # there ``test`` means all of them together
    each = {}
    for name in lora_names(module.net):
        set_lora_enabled(module.net, False)
        set_lora_enabled(module.net, True, name)
        trainer.test(module, datamodule=data, verbose=False)
        each[name] = module.outcomes["test"]
    set_lora_enabled(module.net, True)
    trainer.loggers = loggers
    return each


class _Clock:
    """Seconds since the run began, and of its measured parts."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._parts[part] = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        parts = {**self._parts, "total": time.perf_counter() - self._started}
        return {part: round(seconds, 3) for part, seconds in parts.items()}


def _prepare_process(cfg: DictConfig) -> None:
    keep_freed_memory()
    cfg.paths.run = HydraConfig.get().runtime.output_dir
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected an integer from 0 to {2**32 - 1}")
    seed_everything(cfg.seed, verbose=False)


def find_weakest(cfg: DictConfig, net: nn.Module) -> int:
    """The class with the most validation errors of the base, left in ``net``; of equals, the first.

    Raises:
        UserError: if there is no base yet, or if no validation images are held out.
    """
    if cfg.stage == "pretrain":
        raise UserError("digit=weakest: expected stage=lora, since only a base has a weakest class")
    data = build_data(OmegaConf.merge(cfg, {"digit": None, "data": {"replay": 0}}))  # type: ignore[arg-type]
    if not data.val_size:
        raise UserError(
            "digit=weakest: expected data.val_size > 0, since the weakest class is the one with "
            "the most validation errors"
        )
    load_base(cfg, net)
    errors = torch.zeros(len(data.classes), dtype=torch.int64)
    # A loader draws from the global generator: the run shall be the one of the class by its number.
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for batch in data.val_dataloader():
            images, labels = data.on_after_batch_transfer(batch, 0)  # type: ignore[arg-type]
            wrong = net(images).argmax(dim=1) != labels
            errors += torch.bincount(labels[wrong], minlength=len(errors))
    weakest = int(errors.argmax())
    _info(
        "digit=%d (%s): the weakest class, %d of the base's %d errors on %s validation images",
        *(weakest, data.classes[weakest], errors[weakest], errors.sum(), f"{data.val_size:,}"),
    )
    return weakest


def _check_base_path(path: str | None) -> None:
    """Refuse before training what the base could not be written to after it."""
    if path is None or Path(path).is_dir():
        raise UserError(f"base_ckpt={path}: expected a file to write the base to")
    parent = Path(path).absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"base_ckpt={path}: expected a folder that can be written, not {existing}")


def _check_resumable(cfg: DictConfig, module: ClassifierModule, trainer: Trainer) -> None:
    """Refuse a checkpoint of another base or adapter, or with nothing left to do."""
    checkpoint = read_checkpoint("ckpt_path", Path(cfg.ckpt_path), cfg.stage)
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


@contextmanager
def _trainer_mistakes() -> Iterator[None]:
    """Some options Lightning checks only when it gets to the data."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error


def _check_trained(cfg: DictConfig, net: nn.Module, trainer: Trainer) -> None:
    """Keep nothing that was not trained, or that training has ruined."""
    if cfg.stage == "pretrain" and not trainer.global_step:
        raise UserError(
            f"trainer.max_steps={trainer.max_steps} trainer.max_epochs={trainer.max_epochs}: "
            "expected at least one step of training"
        )
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise UserError(
                f"optimizer.lr={cfg.optimizer.lr}: training diverged, {name} is not finite; "
                "expected a smaller learning rate"
            )


def _require_unchanged(base: dict[str, Tensor], net: nn.Module) -> None:
    if changed := changed_tensors(base, base_state_dict(net)):
        raise RuntimeError(f"fine-tuning changed the base: {', '.join(changed)}")
    _info("base unchanged: %d tensors, bit for bit", len(base))


def _save_base(module: ClassifierModule, path: Path) -> None:
    with atomic_write(path) as temporary:
        torch.save(
            {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)},
            temporary,
        )
    log.info("base: %s", path)


def _results(
    cfg: DictConfig,
    data: MNISTDataModule,
    module: ClassifierModule,
    trainer: Trainer,
    clock: _Clock,
) -> dict[str, Any]:
    """The run's outcome, as results.json has it."""
    return {
        "stage": cfg.stage,
        "dataset": cfg.data.name,
        "seed": cfg.seed,
        "digit": data.digit,
        "steps": trainer.global_step,
        "parameters": count_parameters(module.net),
        **module.outcomes,
        "base_unchanged": None,
        "base_sha256": fingerprint(base_state_dict(module.net)),
        "adapter": None,
        "seconds": clock.seconds(),
    }


def _conclude(results: dict[str, Any], data: MNISTDataModule, folder: Path) -> None:
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}"
        for key, value in results.items()
    ]
    with atomic_write(folder / "results.json") as path:
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    report_results(results, data.classes)
    log.info("run: %s", folder)
