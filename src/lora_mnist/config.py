"""From a configuration to the parts of a run: data, network, base, adapters, module, trainer.

A configuration that is given is never changed: :func:`completed` returns a copy. What is decided at
run time, such as the class to repair or the run's folder, is an argument. What a user can mend is a
:class:`UserError`.
"""

import copy
import json
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from torch import Tensor, nn

from lora_mnist.classifier.dial import dial_curve
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.base import Base, find_base, read_base
from lora_mnist.disk.checkpoint import (
    CHECKPOINTS,
    AtomicCheckpointIO,
    RandomStates,
    read_adapter_checkpoint,
    read_checkpoint,
)
from lora_mnist.disk.latest import latest
from lora_mnist.disk.run_settings import foreign_code, read_run_settings
from lora_mnist.errors import UserError, config_group, is_number, one_line
from lora_mnist.lora import (
    CONFIG_NAME,
    add_lora,
    load_adapter,
    lora_adapters,
    read_metadata,
    remove_lora,
    save_adapter,
    set_lora_scale,
    target_weights,
)
from lora_mnist.project import CONFIGS, is_sweep, program, typed_overrides
from lora_mnist.show.progress import ProgressLines
from lora_mnist.sweep.command import key_of

_info = rank_zero_only(logging.getLogger(__name__).info)

#: lora.rank=auto, or a layer's full rank where that is smaller. docs/repair.md compares ranks.
_AUTO_RANK = 64
#: How often a single run is validated, since somebody may watch it; a sweep's job is at its end.
_VALIDATIONS = 4
#: How often a run is validated where a callback chooses by that.
_CHOICES = 10
#: Of cfg.scheduler, what Lightning's loop needs; the rest is the schedule's own.
_SCHEDULE_KEYS = ("interval", "frequency", "monitor", "strict")
#: What a key may be, where no part of a run would refuse another value.
_ACCEPTED: dict[str, list[Any]] = {
    "allow_other_base": [True, False],
    "check": ["auto", "preprocessing", None],
    "compile": [True, False],
    "dial": [True, False, "auto"],
    "each": [True, False],
    "figures": [True, False, "auto"],
    "publish": [True, False],
    "trust": [True, False],
}
#: Of cfg.data, what is about training alone.
TRAINING_KEYS = {"augment", *OmegaConf.select(OmegaConf.load(CONFIGS / "train.yaml"), "data")}


def completed(cfg: DictConfig) -> DictConfig:
    """A copy of ``cfg`` as a command works with it: checked, ``latest`` found, its run asked.

    A run below ``paths.outputs`` knows in its ``.hydra/`` the network and the data that it was
    trained with, wherever it was started; what the command line says wins.
    """
    _require_known(cfg)
    cfg = cfg.copy()
    if cfg.get("adapter") == "latest":
        marker = latest(Path(cfg.paths.outputs, "lora"), f"*/adapter/{CONFIG_NAME}")
        if marker is None:
            raise UserError(
                f"adapter=latest: expected an adapter in {cfg.paths.outputs}/lora, found none; "
                f"make one with: {program('train')} stage=lora"
            )
        cfg.adapter = str(marker.parents[1])
        if is_sweep():
            raise UserError(
                "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
                f"different ones: adapter={cfg.adapter}"
            )
    adapters = asked_adapters(cfg)
    if not adapters or not HydraConfig.initialized():
        return cfg
    path = adapters[0].path.resolve()
    run = path.parents[1 if path.suffix == ".ckpt" else 0]
    if not run.is_relative_to(Path(cfg.paths.outputs).resolve()):
        return cfg
    trained = read_run_settings(run)
    if trained is None:
        return cfg
    asked = asked_keys()
    with open_dict(cfg):
        # Another net.hidden_sizes is another network; another data.mean is of the same images.
        if not any(key.partition(".")[0] == "net" for key in asked):
            foreign = foreign_code(trained.net)
            _require_trust(cfg, foreign)
            cfg.net, cfg.base_name = trained.net, trained.base_name
            if foreign:
                cfg.paths.here = str(trained.folder)
        if "data" not in asked:
            data = {k: value for k, value in trained.data.items() if k not in TRAINING_KEYS}
            _require_trust(cfg, foreign_code(data))
            folder = data.get("data_dir")
            if folder and not folder.startswith("$"):
                data["data_dir"] = str(trained.folder / folder)
            for key, value in cfg.data.items():
                if key in TRAINING_KEYS or f"data.{key}" in asked:
                    data[key] = value
            cfg.data = data
    return cfg


def _require_trust(cfg: DictConfig, foreign: list[str]) -> None:
    """Refuse code that only an adapter's run names: the run may be somebody else's."""
    if foreign and not cfg.trust:
        raise UserError(
            f"adapter={cfg.adapter}: its run names {foreign[0]}, which is code; expected "
            "trust=true to run it, or net=... and data=... on this command line, as in training"
        )


def _require_known(cfg: DictConfig) -> None:
    """Refuse a key that no file has, such as one added with + by mistake, and odd values of ours.

    What is added further down is an argument of something that refuses what it does not know.
    """
    files = [CONFIGS / f"{cfg.stage}.yaml"]
    if not files[0].is_file():
        files = [CONFIGS / "train.yaml", CONFIGS / "stage" / f"{cfg.stage}.yaml"]
    known = {"base_name", "run_name"}
    for file in files:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        for default in content.pop("defaults", []):
            if isinstance(default, dict):
                # As in "optional local@_global_: default".
                known |= {g.removeprefix("/") for g in default if " " not in g}
        known |= content.keys()
    for key in map(str, cfg):
        if key not in known:
            raise UserError(
                f"{key}: nothing reads this key with stage={cfg.stage}; "
                f"expected one of {', '.join(sorted(known))}"
            )
    for key, accepted in _ACCEPTED.items():
        if key in cfg and str(cfg[key]) not in map(str, accepted):  # 1 is no true
            raise UserError(f"{key}={cfg[key]}: expected one of {json.dumps(accepted)}")
    scale = cfg.get("scale", "auto")
    if scale != "auto" and not is_number(scale):
        raise UserError(f"scale={scale}: expected a number, 1 as trained, or auto")


def asked_keys() -> set[str]:
    """The keys that the command line sets, ``net`` and ``lora.rank``; empty without one."""
    return {key_of(text) for text in typed_overrides()}


# --- data and network ----------------------------------------------------------------------------


def build_data(cfg: DictConfig, stage: str | None) -> Any:
    """The data of ``cfg.data`` with the images of ``stage``: "fit", "test", or ``None``."""
    digit, mistakes = cfg.get("digit"), cfg.data.get("mistakes")
    if digit is not None and mistakes is not None:
        raise UserError(f"digit={digit}: expected null, since data.mistakes={mistakes} is learnt")
    with config_group("data"):
        data: ImageDataModule = instantiate(cfg.data, _convert_="all")
        if stage is None:
            data.measure()
        else:
            data.prepare_data()
            data.setup(stage)
    return data


def build_net(cfg: DictConfig) -> nn.Module:
    """The network of ``cfg.net``, with fresh weights.

    A class of one's own is looked up in the folder where the command was started.
    """
    path = list(sys.path)
    sys.path.append(str(cfg.paths.here))
    try:
        with config_group("net"):
            net: Any = instantiate(cfg.net, _convert_="all")
    finally:
        sys.path[:] = path
    if not isinstance(net, nn.Module):
        raise UserError(f"net._target_={cfg.net._target_}: gives a {type(net).__name__}")
    return net


@torch.no_grad()
def require_fit(net: nn.Module, data: ImageDataModule, images: Tensor) -> None:
    """Refuse a network that cannot take ``images`` of ``data``, or has not an output a class."""
    batch, mode = data.normalise(images), net.training
    try:
        output: Any = net.eval()(batch)
    except Exception as error:  # whatever the network's own layers raise
        raise UserError(
            f"net: cannot take images of shape {tuple(batch.shape)} from {data.name} "
            f"({one_line(error)})"
        ) from error
    net.train(mode)
    expected = (len(batch), len(data.classes))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != expected:
        raise UserError(
            f"net: gives {shape} for images of shape {tuple(batch.shape)}; expected {expected}, "
            f"since {data.name} has {len(data.classes)} classes"
        )


# --- base and adapters ---------------------------------------------------------------------------


@dataclass
class Adapter:
    """An adapter to put on the network."""

    path: Path  # its folder, or a checkpoint of stage=lora
    scale: float = 1.0
    name: str = ""

    @property
    def is_checkpoint(self) -> bool:
        return self.path.suffix == ".ckpt"


def base_folder(cfg: DictConfig) -> Path:
    """Where every base keeps a file of its own."""
    return Path(cfg.paths.outputs, "base")


def load_base(cfg: DictConfig, net: nn.Module) -> Base:
    """Load the base into ``net``, in eval mode; return it, to compare with later.

    The base is ``cfg.base_ckpt``; where that is null, or the default of training, the base that the
    first adapter of ``cfg.adapter`` was made for, found by its SHA-256, or else the current one.
    """
    net.eval()  # in train mode, batch normalisation would move its running statistics
    current = base_folder(cfg) / f"{cfg.base_name}.ckpt"
    path, sha256, adapters = Path(cfg.base_ckpt or current), None, asked_adapters(cfg)
    is_given = cfg.base_ckpt and not (cfg.stage == "lora" and path == current)
    if adapters and not is_given:
        sha256 = _metadata(adapters[0]).get("base_sha256")
        path = (sha256 and find_base(base_folder(cfg), sha256)) or current
    try:
        base = read_base(path, net)
    except FileNotFoundError as error:
        raise UserError(
            f"base_ckpt={path}: no such file; expected the weights of {cfg.net._target_}, "
            f"made with: {program('train')} stage=pretrain"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error
    if sha256 and base.sha256 != sha256 and not cfg.allow_other_base:
        raise UserError(
            f"adapter={adapters[0].path}: its base, {sha256[:12]}..., is not in "
            f"{base_folder(cfg)}; expected base_ckpt=FILE, the weights that it was trained on"
        )
    return base


def asked_adapters(cfg: DictConfig) -> list[Adapter]:
    """The adapters that ``cfg.adapter`` names.

    It is null, a folder, a mapping of ``path`` and perhaps ``scale`` and ``name``, or a list of
    such. A folder is an adapter's own, or that of the run that left it; a file is a checkpoint of
    such a run.
    """
    given = cfg.get("adapter")
    adapters = []
    for each in given if isinstance(given, ListConfig) else [given]:
        if each is None:
            continue
        try:
            adapter = Adapter(**({"path": each} if isinstance(each, str) else each))
            adapter.path = Path(adapter.path)
        except TypeError as error:
            raise UserError(
                f"adapter={each}: expected a folder, a checkpoint, latest, or a mapping of path, "
                "scale and name"
            ) from error
        if not adapter.path.exists():
            raise UserError(
                f"adapter={each}: there is no such file or folder; expected an adapter's folder, "
                "that of the run which left it, a checkpoint, or latest"
            )
        if not (adapter.path / CONFIG_NAME).exists() and (adapter.path / "adapter").is_dir():
            adapter.path /= "adapter"
        if adapter.is_checkpoint and cfg.stage == "lora":
            raise UserError(f"adapter={each}: expected a folder, since stage=lora starts here")
        adapters.append(adapter)
    return adapters


@contextmanager
def _adapter_errors() -> Iterator[None]:
    """Turn what is said of an adapter's files into a :class:`UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"adapter={one_line(error)}") from error


@_adapter_errors()
def _metadata(adapter: Adapter) -> dict[str, str]:
    """What is known of an adapter before it is loaded: the base that it was made for, and more."""
    if adapter.is_checkpoint:
        return {"base_sha256": read_adapter_checkpoint(adapter.path)[1]["base_sha256"]}
    return read_metadata(adapter.path)


def adapter_stack(cfg: DictConfig) -> list[Adapter]:
    """:func:`asked_adapters`, each with a name of its own.

    One without a name is called after what it repairs, ``nines``, or else after its folder, its
    file, or its run's folder; where that name is taken, ``nines2``.
    """
    stack = asked_adapters(cfg)
    taken: list[str] = []
    for adapter in stack:
        folder = adapter.path.parent if adapter.path.name == "adapter" else adapter.path
        known = _metadata(adapter).get("repairs") or folder.name.removesuffix(".ckpt")
        name, number = adapter.name or known, 2
        adapter.name = name
        while adapter.name in taken:
            adapter.name, number = f"{name}{number}", number + 1
        taken.append(adapter.name)
    return stack


def load_adapters(cfg: DictConfig, net: nn.Module, data: Any = None) -> list[Adapter]:
    """Put :func:`adapter_stack` on ``net``, turned up as far as ``cfg.scale`` says; return it.

    With ``scale=auto`` the validation images of ``data`` decide how far: for several adapters one
    after another, with those after it still off.
    """
    factor = cfg.get("scale", 1)  # stage=lora starts from adapters as they are
    if cfg.adapter is None and factor not in (1, "auto"):
        raise UserError(f"scale={factor}: expected 1, since there is no adapter")
    adapters = adapter_stack(cfg)
    if adapters and factor == "auto":
        with config_group("data"):
            data.prepare_data()
            data.setup("validate")
        require_validation("scale=auto", data)
    for adapter in adapters:
        with TemporaryDirectory() as unpacked, _adapter_errors():
            path = adapter.path
            if adapter.is_checkpoint:
                path = _unpack(path, net, unpacked)
            load_adapter(net, path, cfg.allow_other_base, adapter.name, adapter.scale)
        if factor != "auto":
            adapter.scale *= factor
        else:
            advised = validation_dial(cfg, net, data, adapter.name)["advised"]
            _info("scale=%g of %s, as validation images advise", advised, adapter.name)
            adapter.scale *= advised
        set_lora_scale(net, adapter.scale, adapter.name)
    return adapters


def _unpack(checkpoint: Path, net: nn.Module, folder: str) -> Path:
    """Write the adapter in a checkpoint to ``folder``, as a run does when it ends."""
    state, settings = read_adapter_checkpoint(checkpoint)
    twin = copy.deepcopy(net)
    if lora_adapters(twin):
        remove_lora(twin)
    add_configured_lora(OmegaConf.create({"lora": settings["lora"]}), twin)
    tensors = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    twin.load_state_dict(twin.state_dict() | tensors)  # which refuses those of another network
    return save_adapter(twin, folder, metadata={"base_sha256": settings["base_sha256"]})


def validation_dial(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, name: str | None = None
) -> dict[str, Any]:
    """:func:`.classifier.dial.dial_curve` of ``net``, in eval mode, on the validation images."""
    with on_device(cfg, net.eval()) as device:
        return dial_curve(net, data.batches(data.val_set, device), data.targets, name=name)


def require_validation(setting: str, data: ImageDataModule) -> None:
    """Refuse a ``setting``, ``key=value``, that validation images decide, where there are none."""
    if not len(data.val_set):
        raise UserError(f"{setting}: expected data.val_size > 0, since validation images decide")


@contextmanager
def on_device(cfg: DictConfig, net: nn.Module) -> Iterator[torch.device]:
    """Inside the ``with`` block ``net`` is where the Trainer, if there is one, puts it."""
    device = torch.device("cpu")
    if "trainer" in cfg:
        device = Fabric(accelerator=cfg.trainer.accelerator, devices=1).device
    net.to(device)
    try:
        yield device
    finally:
        net.to("cpu")  # a new adapter draws its first values there, the same on every machine


# --- module and trainer --------------------------------------------------------------------------


def add_configured_lora(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter as ``cfg.lora`` says on ``net``, in train mode; the base stays in eval."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg.lora, resolve=True)  # type: ignore[assignment]
    scale = settings.pop("scale")
    if scale != "auto" and not (is_number(scale) and scale > 0):
        raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
    with config_group("lora"):
        if settings["rank"] == "auto":
            # A layer's own pattern comes first, and the first that fits holds.
            full = full_ranks(net, settings["target_modules"], _AUTO_RANK)
            settings["rank"] = _AUTO_RANK
            settings["rank_pattern"] = {**(settings["rank_pattern"] or {}), **full}
        add_lora(net, **settings)
    net.train()


def full_ranks(net: nn.Module, target_modules: Any, rank: int) -> dict[str, int]:
    """Layers whose weight, as a matrix, has a full rank below ``rank``, and that full rank."""
    ranks = {}
    for name, weight in target_weights(net, target_modules).items():
        rows = len(weight.base)
        full = min(rows, weight.base.numel() // rows)
        if full < rank:
            ranks[f"^{name}"] = full
    return ranks


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Train the parameters of ``net`` whose full name matches ``pattern``, and no others."""
    try:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(re.fullmatch(pattern, name) is not None)
    except re.error as error:
        raise UserError(f"trainable={pattern}: expected a regular expression ({error})") from error
    if not any(parameter.requires_grad for parameter in net.parameters()):
        names = ", ".join(name for name, _ in net.named_parameters())
        raise UserError(f"trainable={pattern}: expected to match a parameter, of: {names}")
    net.train()


def build_module(
    cfg: DictConfig,
    net: nn.Module,
    data: ImageDataModule,
    base: Base | None = None,
    adapter: str | None = None,
) -> ClassifierModule:
    """The module that trains ``net``; ``adapter`` is what is trained on top of other adapters."""
    _require_fit_together(cfg, data)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters |= {"base_sha256": base and base.sha256, "targets": data.targets}
    hyperparameters |= {"classes": data.classes, "data_sha256": dict(data.sha256)}
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    lr = cfg.optimizer.lr
    if not is_number(lr) or lr < 0:
        raise UserError(f"optimizer.lr={lr}: expected a finite number >= 0")
    with config_group("optimizer"):
        settings = {k: v for k, v in cfg.optimizer.items() if k not in ("lr", "lr_ratio")}
        optimizer = instantiate(settings, _convert_="all")  # else checkpoints hold what is no list
    with config_group("scheduler"):
        settings, schedule = dict(cfg.scheduler or {}), {"interval": "step"}
        schedule |= {key: settings.pop(key) for key in _SCHEDULE_KEYS if key in settings}
        scheduler = instantiate(settings, _convert_="all") if settings else None
    if cfg.compile:
        net.compile()  # in place: its tensors keep their names
    with config_group("optimizer"):
        module = ClassifierModule(
            net,
            len(data.classes),
            loss=loss,
            optimizer=optimizer,
            lr=float(lr),
            lr_ratio=cfg.optimizer.lr_ratio,
            replay=data.replay,
            scheduler=scheduler,
            schedule=schedule,
            base_tensors=base.tensors if base and not lora_adapters(net) else None,
            adapter=adapter,
            class_names=data.classes,
            targets=data.targets,
            hyperparameters=hyperparameters,
        )
    module.configure_optimizers()  # as Lightning does late: what is refused is refused here
    return module


def _require_fit_together(cfg: DictConfig, data: ImageDataModule) -> None:
    """Refuse values that are each right on their own, but not together."""
    scheduler, loss, lr_ratio = cfg.scheduler or {}, cfg.loss, cfg.optimizer.lr_ratio
    if scheduler.get("max_lr") and lr_ratio != 1:
        raise UserError(f"optimizer.lr_ratio={lr_ratio}: expected 1, since scheduler.max_lr is one")
    if -1 in (scheduler.get("T_max"), scheduler.get("total_iters"), scheduler.get("total_steps")):
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    if cfg.stage == "pretrain":
        for key in ("loss.distill", "data.hardness", "data.mistakes"):
            if value := OmegaConf.select(cfg, key):
                raise UserError(
                    f"{key}={value}: expected 0, or null, since stage=pretrain has no base"
                )
    if data.replay == 0:
        if loss.get("distill") and loss.get("distill_on") in (None, "replay"):
            raise UserError(
                f"loss.distill={loss.distill}: expected data.replay > 0, or loss.distill_on=target"
            )
        if loss.get("target_weight") is not None:
            raise UserError(
                f"loss.target_weight={loss.target_weight}: expected null, or data.replay > 0"
            )


def build_trainer(
    cfg: DictConfig, folder: Path, validates: bool = True, checkpoint: Path | None = None
) -> Trainer:
    """Lightning's Trainer with the configured callbacks and loggers, which write into ``folder``.

    Callbacks and plugins of ``cfg.trainer`` come beside the configured ones; a logger there takes
    the place of all others. ``checkpoint`` is where an earlier run is gone on with.
    """
    step: Any = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    parts: dict[str, list[Any]] = {"callbacks": [RandomStates(), _PlainSigterm()], "logger": []}
    for group, instances in parts.items():
        for name, config in (cfg.get(group) or {}).items():
            if config is None:
                continue
            changes: dict[str, Any] = {}
            if name == "checkpoint" and config.get("dirpath") is not None:
                raise UserError(
                    f"callbacks.checkpoint.dirpath={config.dirpath}: expected null, the run's "
                    "folder, where resume looks for it"
                )
            if config.get("dirpath", "") is None:
                changes["dirpath"] = str(folder / CHECKPOINTS)
            if config.get("save_dir", "") is None:
                changes["save_dir"] = str(folder)
            if cfg.get("resume") is not None and config._target_.endswith("TensorBoardLogger"):
                changes["purge_step"] = step  # what was logged after the checkpoint is logged again
            if step and config._target_.endswith("CSVLogger"):
                changes["version"] = f"from_step_{step}"  # it would delete the file that is there
            with config_group(f"{group}.{name}"):
                instances.append(instantiate(config, **changes))
    callbacks, loggers = parts["callbacks"], parts["logger"]
    with config_group("trainer"):
        given = dict(instantiate(cfg.trainer, _convert_="all", _partial_=True).keywords)
        callbacks += given.pop("callbacks", None) or []
        if not sys.stdout.isatty():
            callbacks.append(ProgressLines())
        has_bar = sys.stdout.isatty() or any(isinstance(each, ProgressBar) for each in callbacks)
        settings: dict[str, Any] = {
            "default_root_dir": str(folder),
            "callbacks": callbacks,
            "logger": loggers or False,
            "plugins": [AtomicCheckpointIO(), *(given.pop("plugins", None) or [])],
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "enable_progress_bar": has_bar,
        }
        chooses = any(str(getattr(c, "monitor", "")).startswith("val") for c in callbacks)
        is_said = "val_check_interval" in given or "check_val_every_n_epoch" in given
        if not validates:
            settings["limit_val_batches"] = 0
            if chooses:
                raise UserError(
                    "data.val_size=0: expected > 0, since callbacks choose by validation images"
                )
        elif not is_said and (chooses or (loggers and not is_sweep())):
            count = _CHOICES if chooses else _VALIDATIONS
            settings["val_check_interval"] = 1 / count  # of an epoch
            if given.get("max_steps", -1) >= 0:
                batches = given["max_steps"] * given.get("accumulate_grad_batches", 1)
                settings["val_check_interval"] = max(1, batches // count)
                settings["check_val_every_n_epoch"] = None  # counted over epochs
        trainer = Trainer(**settings | given)
    if trainer.precision in ("64-true", "16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={trainer.precision}: expected 32-true or a mixed precision, "
            "since the base is kept in float32, bit for bit"
        )
    if not trainer.limit_test_batches:
        raise UserError("trainer.limit_test_batches=0: expected > 0, since a run ends in a test")
    if is_sweep() and trainer.world_size > 1:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected one process for each job of a sweep"
        )
    return trainer


class _PlainSigterm(Callback):
    """In a distributed run SIGTERM ends each process at once, as it ends other programs.

    Lightning 2.6 tells the other processes from within its signal handler, by a broadcast that
    waits for ever where the signal comes during another one.
    """

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the ``with`` block Lightning gives no advice that a run here has no use for."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # data.num_workers is for sets on the disk
            ".*in eval mode at the start of training.*",  # the base is, on purpose
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
