"""From a configuration to the parts of a run: data, network, base, adapters, module, Trainer."""

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from lora_mnist.adapter import fingerprint, load_adapter
from lora_mnist.data import MNISTDataModule
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.lora import add_lora, has_lora, lora_names
from lora_mnist.module import ClassifierModule


class Base(NamedTuple):
    """A pretrained network as its checkpoint holds it."""

    tensors: dict[str, Tensor]
    sha256: str


def build_data(cfg: DictConfig) -> MNISTDataModule:
    """The data of ``cfg.data``, with the images that ``cfg.stage`` needs.

    Raises:
        UserError: if a value of ``cfg.data`` cannot be used, or the files are damaged or missing.
    """
    with config_group("data"):
        data: MNISTDataModule = instantiate(cfg.data, _convert_="all")
        data.prepare_data()
        data.setup("fit" if cfg.stage in ("pretrain", "lora", "finetune") else "test")
    return data


def build_net(cfg: DictConfig) -> nn.Module:
    """The network of ``cfg.net``, with fresh weights.

    Raises:
        UserError: if a value of ``cfg.net`` cannot be used.
    """
    with config_group("net"):
        net: nn.Module = instantiate(cfg.net, _convert_="all")
    return net


def load_base(cfg: DictConfig, net: nn.Module) -> Base:
    """Load ``cfg.base_ckpt`` into ``net``; return it, to compare with later.

    Raises:
        UserError: if there is no such file, or it holds no base of this kind of network.
    """
    path = Path(cfg.base_ckpt)
    if not path.exists():
        raise UserError(
            f"base_ckpt={path}: no such file; "
            f"make it with: python train.py stage=pretrain{_chosen('net')}{_chosen('data')}"
        )
    base = _read_base(path, path.stat().st_mtime_ns)
    try:
        net.load_state_dict(base.tensors)
    except RuntimeError as error:
        raise UserError(
            f"base_ckpt={path}: expected a checkpoint of the configured net; {one_line(error)}"
        ) from error
    return base


@lru_cache(maxsize=1)
def _read_base(path: Path, mtime_ns: int) -> Base:
    """Kept for the life of the process, unless the file changes: the jobs of a sweep share it."""
    state = read_checkpoint("base_ckpt", path, stage="pretrain")["state_dict"]
    tensors = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    return Base(tensors, fingerprint(tensors))


def rate_training_images(
    cfg: DictConfig, net: nn.Module, base: Base, data: MNISTDataModule
) -> None:
    """Have ``base``, which ``net`` holds, decide how often each training image is drawn."""
    # All that the weights depend on: the jobs of a sweep compute them once.
    keys = ("dataset", "data_dir", "digit", "val_size", "mean", "std", "hardness")
    images = [cfg.data[key] for key in keys] + [data.replay > 0]
    data.draw_weights = _draw_weights(base.sha256, str([cfg.net, images]))
    if not data.draw_weights:
        data.rate(net)


@lru_cache(maxsize=1)
def _draw_weights(base_sha256: str, setting: str) -> dict[str, Tensor]:
    return {}


def add_configured_lora(cfg: DictConfig, net: nn.Module) -> None:
    """Put the adapter of ``cfg.lora`` on ``net``.

    Raises:
        UserError: if a value of ``cfg.lora`` cannot be used.
    """
    # How fast lora_B learns is the optimizer's affair.
    settings = {key: value for key, value in cfg.lora.items() if key != "lr_ratio"}
    with config_group("lora"):
        add_lora(net, **settings)


def load_adapters(cfg: DictConfig, net: nn.Module) -> list[str]:
    """Stack the adapters of ``cfg.adapter`` on ``net``; return their names.

    ``cfg.adapter`` is null, a folder, a mapping of ``path`` and perhaps ``weight`` and ``name``, or
    a list of such. An adapter without a name is called after its folder, or after its run's folder.

    Raises:
        UserError: if an adapter is described in another way or cannot be loaded.
    """
    require_bool(cfg, "allow_other_base")
    chosen = cfg.adapter if isinstance(cfg.adapter, ListConfig) else [cfg.adapter]
    for adapter in chosen:
        if adapter is None:
            continue
        spec: Any = {"path": adapter} if isinstance(adapter, str) else adapter
        if not isinstance(spec, Mapping) or not {"path"} <= spec.keys() <= {
            "path",
            "weight",
            "name",
        }:
            raise UserError(
                f"adapter={adapter}: expected a folder, or a mapping of path, weight and name"
            )
        path = Path(spec["path"])
        name = spec.get("name") or (path.parent.name if path.name == "adapter" else path.name)
        try:
            load_adapter(net, path, cfg.allow_other_base, str(name), spec.get("weight", 1.0))
        except ValueError as error:
            raise UserError(f"adapter={one_line(error)}") from error
    return lora_names(net)


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Freeze every parameter of ``net`` but those whose full name matches ``pattern``.

    Raises:
        UserError: if ``pattern`` is no regular expression or matches no parameter.
    """
    names = [name for name, _ in net.named_parameters()]
    try:
        chosen = {name for name in names if re.fullmatch(pattern, name)}
    except (re.error, TypeError) as error:
        raise UserError(f"trainable={pattern}: expected a regular expression ({error})") from error
    if not chosen:
        raise UserError(
            f"trainable={pattern}: expected to match a parameter, of: {', '.join(names)}"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)


def build_module(
    cfg: DictConfig, net: nn.Module, data: MNISTDataModule, base: Base | None
) -> ClassifierModule:
    """The module that trains or tests ``net``, which carries LoRA where there is a ``base``."""
    _check_fit_together(cfg, data)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters["base_sha256"] = base and base.sha256
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    with config_group("optimizer"):
        optimizer = instantiate(cfg.get("optimizer"))
        if optimizer:
            optimizer(net.parameters())  # refuses bad values now, not in the middle of the fit
    with config_group("scheduler"):
        scheduler = instantiate(cfg.scheduler) if cfg.get("scheduler") else None
    if scheduler and -1 in scheduler.keywords.values():
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    # All that the base's answers to the validation and test images depend on.
    keys = ("dataset", "data_dir", "val_size", "eval_batch_size", "mean", "std")
    images = [cfg.data[key] for key in keys]
    arithmetic = {k: v for k, v in cfg.trainer.items() if not k.startswith(("max_", "log_"))}
    base_logits = _base_logits(base and base.sha256, str([cfg.net, images, arithmetic]))
    classes, lr_ratio = len(data.classes), cfg.lora.lr_ratio if cfg.stage == "lora" else 1.0
    base_tensors = base.tensors if base is not None and not has_lora(net) else None
    with config_group("lora"):
        return ClassifierModule(
            *(net, loss, optimizer, classes, hyperparameters, lr_ratio),
            *(base_logits, scheduler, base_tensors),
        )


def _check_fit_together(cfg: DictConfig, data: MNISTDataModule) -> None:
    """Refuse values that are right each for itself and wrong together."""
    if (outputs := cfg.net.get("num_classes")) not in (None, classes := len(data.classes)):
        raise UserError(f"net.num_classes={outputs}: expected the {classes} of {data.dataset}")
    distill = cfg.loss.get("distill")
    if cfg.stage == "pretrain":
        for key, value in {"loss.distill": distill, "data.hardness": data.hardness}.items():
            if value:
                raise UserError(f"{key}={value}: expected 0, since stage=pretrain has no base")
    if not distill:
        return
    if cfg.loss.distill_on == "replay" and not data.replay and cfg.stage != "eval":
        raise UserError(
            f"loss.distill={distill}: expected data.replay > 0, or loss.distill_on=target"
        )


@lru_cache(maxsize=4)
def _base_logits(base_sha256: str | None, setting: str) -> dict[tuple[str, int], Tensor]:
    """What a base answered to each batch of evaluation: the jobs of a sweep ask it once."""
    return {}


def build_trainer(cfg: DictConfig) -> Trainer:
    """Lightning's Trainer with the configured callbacks and logger; a bar only on a terminal."""
    accelerator = cfg.trainer.accelerator
    if isinstance(accelerator, str) and accelerator not in (available := _accelerators()):
        raise UserError(
            f"trainer.accelerator={accelerator}: not on this machine; "
            f"expected one of {', '.join(available)}"
        )
    with config_group("callbacks"):
        callbacks = [instantiate(c) for c in (cfg.get("callbacks") or {}).values() if c]
    settings: dict[str, Any] = {}
    if not sys.stdout.isatty():  # into a pipe or a file: no bar, only what is worth keeping
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        settings["enable_progress_bar"] = False
    with config_group("logger"):
        logger = instantiate(cfg.logger) if cfg.get("logger") else False
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


def require_bool(cfg: DictConfig, key: str) -> None:
    """Refuse any other value: what merely is not empty would count as true."""
    if not isinstance(value := cfg[key], bool):
        raise UserError(f"{key}={value}: expected true or false")


def _chosen(group: str) -> str:
    """`` group=choice`` as on the command line."""
    return f" {group}={HydraConfig.get().runtime.choices[group]}"


def read_checkpoint(key: str, path: Path, stage: str) -> dict[str, Any]:
    """What a run of ``stage`` saved, without unpickling anything but plain values and tensors.

    Raises:
        UserError: naming ``key``, if the file is damaged, something else or of another stage.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["hyper_parameters"]["stage"]
    except Exception as error:  # torch.load has no common class for what a damaged file causes
        raise UserError(
            f"{key}={path}: expected a checkpoint of stage={stage}; "
            f"this file is damaged or something else ({type(error).__name__})"
        ) from error
    if found != stage:
        raise UserError(f"{key}={path}: expected a checkpoint of stage={stage}, not stage={found}")
    return checkpoint
