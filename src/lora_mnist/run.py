"""The one path from a configuration to results.json: build, fit, test, write."""

import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from lora_mnist.adapter import changed_tensors, fingerprint, load_adapter, save_adapter
from lora_mnist.data import MNISTDataModule
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.files import atomic_write
from lora_mnist.lora import add_lora, base_state_dict, has_lora, lora_names, set_lora_enabled
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


class Base(NamedTuple):
    """A pretrained network as its checkpoint holds it."""

    tensors: dict[str, Tensor]
    sha256: str


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
    _enter_run_folder(cfg)
    net = build_net(cfg)
    base = None if cfg.stage == "pretrain" else load_base(cfg, net)
    if cfg.digit == "weakest":
        cfg.digit = find_weakest(cfg, net, base)
    data = build_data(cfg)
    if cfg.stage == "lora":
        add_configured_lora(cfg, net)
    elif cfg.stage == "finetune":
        choose_trainable(net, cfg.trainable)
    module = build_module(cfg, net, data, base)
    trainer = build_trainer(cfg)
    with config_group("data"):
        data.batch_size_per_process(trainer.world_size)
    if cfg.ckpt_path is not None:
        _read_checkpoint("ckpt_path", Path(cfg.ckpt_path), cfg.stage)
    report_parameters(net)
    _info("%s on %s training images", cfg.stage, f"{len(data.train_set):,}")
    with clock.measure("fit"):
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    if cfg.stage == "lora":
        assert base is not None
        _require_unchanged(base.tensors, net)
    if data.val_size and module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    with clock.measure("test"):
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
    _enter_run_folder(cfg)
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


def _enter_run_folder(cfg: DictConfig) -> None:
    cfg.paths.run = HydraConfig.get().runtime.output_dir
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected an integer from 0 to {2**32 - 1}")
    seed_everything(cfg.seed, verbose=False)


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


def find_weakest(cfg: DictConfig, net: nn.Module, base: Base | None) -> int:
    """The class with the most validation errors of the base in ``net``; of equals, the first.

    Raises:
        UserError: if there is no base yet, or if no validation images are held out.
    """
    if base is None:
        raise UserError("digit=weakest: expected stage=lora, since only a base has a weakest class")
    data = build_data(OmegaConf.merge(cfg, {"digit": None, "data": {"replay": 0}}))  # type: ignore[arg-type]
    if not data.val_size:
        raise UserError(
            "digit=weakest: expected data.val_size > 0, since the weakest class is the one with "
            "the most validation errors"
        )
    errors = torch.zeros(len(data.classes), dtype=torch.int64)
    with torch.inference_mode():
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
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters["base_sha256"] = base and base.sha256
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    optimizer = instantiate(cfg.get("optimizer"))
    if optimizer:
        with config_group("optimizer"):
            optimizer(net.parameters())  # refuses bad values now, not in the middle of the fit
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
    callbacks = [instantiate(c) for c in (cfg.get("callbacks") or {}).values() if c]
    settings: dict[str, Any] = {}
    if not sys.stdout.isatty():  # into a pipe or a file: no bar, only what is worth keeping
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
        settings["enable_progress_bar"] = False
    logger = instantiate(cfg.logger) if cfg.get("logger") else False
    try:
        trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=logger, **settings)
    except InstantiationException as error:
        reason = one_line(error.__cause__)
        named = [f"trainer.{key}={value}" for key, value in cfg.trainer.items() if key in reason]
        raise UserError(f"{(named or ['trainer'])[0]}: {reason}") from error
    return trainer


def _accelerators() -> list[str]:
    """What ``trainer.accelerator`` accepts on this machine."""
    names = [n for n, a in AcceleratorRegistry.items() if a["accelerator"].is_available()]
    return ["auto", *names, *(["gpu"] if {"cuda", "mps"} & set(names) else [])]


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
    state = _read_checkpoint("base_ckpt", path, stage="pretrain")["state_dict"]
    tensors = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    return Base(tensors, fingerprint(tensors))


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


def _chosen(group: str) -> str:
    """`` group=choice`` as on the command line."""
    return f" {group}={HydraConfig.get().runtime.choices[group]}"


def _read_checkpoint(key: str, path: Path, stage: str) -> dict[str, Any]:
    """What a run of ``stage`` saved, without unpickling anything but plain values and tensors."""
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
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in results.items()]
    with atomic_write(folder / "results.json") as path:
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    report_results(results, data.classes)
    log.info("run: %s", folder)
