"""From a configuration to the parts of a run: data, network, base, adapters, module, trainer.

Nothing here changes the configuration; what is decided at run time, such as the class to repair or
the run's folder, is an argument. A value that cannot be used, and a file that is missing or does
not fit, raise a :class:`UserError`.
"""

import copy
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
)
from lora_mnist.disk.latest import latest
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.lora import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    adapter_sha256,
    add_deltas,
    add_lora,
    count_parameters,
    is_number,
    load_adapter,
    lora_adapters,
    lora_state_dict,
    read_beneath,
    read_metadata,
    remove_lora,
    save_adapter,
    set_lora_scale,
    target_weights,
)
from lora_mnist.project import CONFIGS, is_sweep, program
from lora_mnist.show.loggers import TensorBoardPage
from lora_mnist.show.progress import ProgressLines

_info = rank_zero_only(logging.getLogger(__name__).info)

#: How often a single run is validated, since somebody may watch it; a sweep's job is at its end.
_VALIDATIONS = 4
#: How often a run is validated where a callback chooses by that.
_CHOICES = 10
#: Of cfg.scheduler, what Lightning's loop needs; the rest is the schedule's own.
_SCHEDULE_KEYS = ("interval", "frequency", "monitor", "strict")
#: Of cfg.data, what is about training alone.
TRAINING_KEYS = (
    "batch_size",
    "replay",
    "hardness",
    "seed",
    "augment",
    "mistakes",
    "mistakes_test",
)


def asked_keys() -> set[str]:
    """The keys that the command line sets, ``net`` and ``lora.rank``; empty without one."""
    texts = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {text.partition("=")[0].lstrip("+~") for text in texts}


def require_known_keys(cfg: DictConfig, entry: str) -> None:
    """Refuse a key that no file for ``entry`` has, such as one added with + by mistake.

    What is added further down is an argument of something that refuses what it does not know.
    """
    known = {"base_name", "run_name"}
    for path in (CONFIGS / f"{entry}.yaml", CONFIGS / "stage" / f"{cfg.stage}.yaml"):
        config: Any = OmegaConf.load(path) if path.exists() else OmegaConf.create()
        for default in config.pop("defaults", []):
            if isinstance(default, DictConfig):  # as "optional local@_global_: default"
                known |= {str(group).partition("@")[0].split()[-1].strip("/") for group in default}
        known |= set(config)
    for key in map(str, cfg):
        if key not in known:
            raise UserError(
                f"{key}: nothing reads this key with stage={cfg.stage}; "
                f"expected one of {', '.join(sorted(known))}"
            )


# --- data and network ----------------------------------------------------------------------------


def build_data(cfg: DictConfig, stage: str | None, target: Any = None, **changes: Any) -> Any:
    """The data of ``cfg.data``, with the images of ``stage``: "fit" or "test".

    With ``None`` it has no images, only their mean and deviation. ``target`` is the class, or the
    classes, to train on; ``changes`` are arguments that differ from ``cfg.data``.
    """
    digit, mistakes = cfg.get("digit"), cfg.data.get("mistakes")
    if digit is not None and mistakes is not None:
        raise UserError(f"digit={digit}: expected null, since data.mistakes={mistakes} is learnt")
    with config_group("data"):
        data: ImageDataModule = instantiate(cfg.data, target=target, _convert_="all", **changes)
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
    here, path = str(cfg.paths.here), list(sys.path)
    sys.path.append(here)
    try:
        with config_group("net"):
            net: Any = instantiate(cfg.net, _convert_="all")
            if not isinstance(net, nn.Module):
                raise ValueError(f"_target_={cfg.net._target_}: gives a {type(net).__name__}")
    except UserError as error:
        if cfg.net._target_.startswith("lora_mnist."):
            raise
        raise UserError(
            f"{error}; expected net=custom net._target_=MODULE.CLASS, with MODULE in {here} or "
            "installed, and the arguments that CLASS takes"
        ) from error
    finally:
        sys.path[:] = path
    return net


@torch.no_grad()
def require_fit(net: nn.Module, data: ImageDataModule, images: Tensor) -> None:
    """Refuse a network that cannot take these images, or has not one output for each class.

    ``images`` are some of those of ``data``, uint8, shape (N, channels, height, width).
    """
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
            f"net: gives {shape} for images of shape {tuple(batch.shape)}; expected {expected}, an "
            f"output for each of the {len(data.classes)} classes of {data.name}"
        )


# --- base and adapters ---------------------------------------------------------------------------


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
    path, sha256, adapter = Path(cfg.base_ckpt or current), None, None
    is_given = cfg.base_ckpt and not (cfg.stage == "lora" and path == current)
    if cfg.get("adapter") and not is_given:
        adapter = adapter_specs(cfg)[0]["path"]
        sha256 = _metadata(adapter).get("base_sha256")
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
            f"adapter={adapter}: its base, {sha256[:12]}..., is not in {base_folder(cfg)}; "
            "expected base_ckpt=FILE, the weights that it was trained on"
        )
    return base


def adapter_specs(cfg: DictConfig) -> list[dict[str, Any]]:
    """``path``, ``scale`` and perhaps ``name`` of each adapter of ``cfg.adapter``.

    ``cfg.adapter`` is null, a folder, a mapping of ``path`` and perhaps ``scale`` and ``name``, or
    a list of such. A folder is an adapter's own, or that of the run that left it; a file is a
    checkpoint of such a run.
    """
    several = isinstance(cfg.adapter, ListConfig)
    specs = []
    for adapter in cfg.adapter if several else [cfg.adapter]:
        if adapter is None:
            continue
        spec = {"path": adapter} if isinstance(adapter, str) else adapter
        known = isinstance(spec, Mapping) and {"path"} <= spec.keys() <= {"path", "scale", "name"}
        if not known or not isinstance(spec["path"], str):
            raise UserError(
                f"adapter={adapter}: expected a folder, a checkpoint, latest, or a mapping of "
                "path, scale and name"
            )
        path = Path(spec["path"])
        if not (path / CONFIG_NAME).exists() and (path / "adapter").is_dir():
            path /= "adapter"
        if _is_checkpoint(path) and cfg.stage == "lora":
            raise UserError(f"adapter={path}: expected a folder, since stage=lora starts here")
        specs.append({"scale": 1.0, "name": None, **spec, "path": path})
    return specs


def adapter_stack(cfg: DictConfig) -> list[dict[str, Any]]:
    """:func:`adapter_specs` and, before each, the adapters that it was trained on top of.

    ``is_asked`` tells the former from the latter; ``sha256`` is that of the adapter's file. One
    without a name is called after what it repairs, ``nines`` and then ``nines2``, or else after its
    folder, its file, or its run's folder.
    """
    stack: list[dict[str, Any]] = []
    for spec in adapter_specs(cfg):
        own, beneath = "", []
        if not _is_checkpoint(spec["path"]):
            with _adapter_errors():
                beneath = read_beneath(spec["path"])
                own = adapter_sha256(spec["path"])
        for sha256, scale in beneath:
            if sha256 in [other["sha256"] for other in stack]:
                continue
            files = Path(cfg.paths.outputs).rglob(WEIGHTS_NAME)
            folders = sorted(f.parent for f in files if adapter_sha256(f.parent) == sha256)
            if not folders:
                raise UserError(
                    f"adapter={spec['path']}: stands on the adapter {sha256[:12]}..., which is not "
                    f"in {cfg.paths.outputs}; expected it on the command line, as "
                    f"adapter=[FOLDER,{spec['path']}]"
                )
            below = {"path": folders[0], "scale": scale, "name": None}
            stack.append({**below, "sha256": sha256, "is_asked": False})
        stack.append({**spec, "sha256": own, "is_asked": True})
    taken = [spec["name"] for spec in stack]
    for spec in stack:
        if spec["name"] is None:
            folder = spec["path"].parent if spec["path"].name == "adapter" else spec["path"]
            name = _metadata(spec["path"]).get("repairs") or folder.name.removesuffix(".ckpt")
            spec["name"], number = name, 2
            while spec["name"] in taken:
                spec["name"], number = f"{name}{number}", number + 1
            taken.append(spec["name"])
    return stack


def load_adapters(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule | None = None
) -> dict[str, float]:
    """Put :func:`adapter_stack` on ``net``, turned up as far as ``cfg.scale`` says.

    With ``scale=auto`` the validation images of ``data`` decide how far: for several adapters one
    after another, those behind still off; those that are only beneath stay as they were.

    Returns:
        The adapters' scales by their names.
    """
    factor = cfg.get("scale", 1)  # stage=lora starts from adapters as they are
    if factor != "auto" and not is_number(factor):
        raise UserError(f"scale={factor}: expected a number, 1 as trained, or auto")
    if cfg.adapter is None:
        if factor not in (1, "auto"):
            raise UserError(f"scale={factor}: expected 1, since there is no adapter")
        return {}
    if factor == "auto" and data is not None:
        with config_group("data"):
            data.prepare_data()
            data.setup("validate")
        require_validation("scale=auto", data)
    scales = {}
    for spec in adapter_stack(cfg):
        name, scale = spec["name"], spec["scale"]
        with TemporaryDirectory() as unpacked, _adapter_errors():
            path = spec["path"]
            if _is_checkpoint(path):
                path = _unpack(path, net, unpacked)
            load_adapter(net, path, cfg.allow_other_base, name=name, scale=scale)
        if factor != "auto":
            scale *= factor
        elif data is not None and spec["is_asked"]:
            advised = validation_dial(cfg, net, data, name=name)["advised"]
            _info("scale=%g of %s, as validation images advise", advised, name)
            scale *= advised
        set_lora_scale(net, scale, name)
        scales[name] = scale
    return scales


@contextmanager
def _adapter_errors() -> Iterator[None]:
    """Turn what is said of an adapter's files into a :class:`UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"adapter={one_line(error)}") from error


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".ckpt"


def _metadata(path: Path) -> dict[str, str]:
    """What is known of an adapter before it is loaded: the base that it was made for, and more."""
    with _adapter_errors():
        if _is_checkpoint(path):
            return {"base_sha256": read_adapter_checkpoint(path)[1]["base_sha256"]}
        return read_metadata(path)


def _unpack(checkpoint: Path, net: nn.Module, folder: str) -> Path:
    """Write the adapter in a checkpoint to ``folder``, as a run does when it ends.

    Raises:
        ValueError: if the checkpoint holds no adapter that fits ``net``.
    """
    state, settings = read_adapter_checkpoint(checkpoint)
    twin = copy.deepcopy(net)
    if lora_adapters(twin):
        remove_lora(twin)
    add_configured_lora(OmegaConf.create({"lora": settings["lora"]}), twin)
    expected = {f"net.{key}": tensor.shape for key, tensor in lora_state_dict(twin).items()}
    if expected != {key: tensor.shape for key, tensor in state.items()}:
        raise ValueError(f"{checkpoint}: its tensors do not fit the layers of {settings['net']}")
    tensors = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    twin.load_state_dict(tensors, strict=False)
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


def with_run(cfg: DictConfig) -> DictConfig:
    """``cfg`` with the latest adapter's folder for ``latest``, and that run's network and data.

    A run below ``paths.outputs`` knows in its ``.hydra/`` what it was trained with, wherever it was
    started; what the command line says wins.
    """
    cfg = cfg.copy()
    if cfg.adapter == "latest":
        cfg.adapter = _latest_adapter(cfg)
    specs = adapter_specs(cfg)
    if not specs or not HydraConfig.initialized():
        return cfg
    path, outputs = specs[0]["path"].absolute(), Path(cfg.paths.outputs).resolve()
    run = path.parents[_is_checkpoint(path)].resolve()
    hydra = run / ".hydra"
    # A network is code: somebody else's run does not choose what is imported.
    if not run.is_relative_to(outputs) or not (hydra / "hydra.yaml").is_file():
        return cfg
    trained: Any = OmegaConf.to_container(OmegaConf.load(hydra / "config.yaml"))
    here = OmegaConf.load(hydra / "hydra.yaml").hydra.runtime.cwd
    asked = asked_keys()
    with open_dict(cfg):
        # Another net.hidden_sizes is another network; another data.mean is of the same images.
        if "net" not in {key.partition(".")[0] for key in asked}:
            cfg.net, cfg.base_name, cfg.paths.here = trained["net"], trained["base_name"], here
        if "data" not in asked:
            data = {
                key: value for key, value in trained["data"].items() if key not in TRAINING_KEYS
            }
            folder = data.get("data_dir")
            if folder and not folder.startswith("$"):
                data["data_dir"] = str(Path(here, folder))
            for key, value in cfg.data.items():
                if key in TRAINING_KEYS or f"data.{key}" in asked:
                    data[key] = value
            cfg.data = data
    return cfg


def _latest_adapter(cfg: DictConfig) -> str:
    """The folder of the run that left the newest adapter."""
    marker = latest(Path(cfg.paths.outputs, "lora"), f"*/adapter/{CONFIG_NAME}")
    if marker is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {cfg.paths.outputs}/lora, found none; "
            f"make one with: {program('train')} stage=lora"
        )
    if is_sweep():
        raise UserError(
            "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
            f"different ones: adapter={marker.parents[1]}"
        )
    return str(marker.parents[1])


# --- module and trainer --------------------------------------------------------------------------


def add_configured_lora(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter as ``cfg.lora`` says on ``net``, in train mode; the base stays in eval.

    Where it trains whole tensors, what a recipe says of ranks is not used.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.lora, resolve=True)  # type: ignore[assignment]
    scale = settings.pop("scale")
    if scale != "auto" and not (is_number(scale) and scale > 0):
        raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
    with config_group("lora"):
        if "tensors" in settings:
            tensors, base_dropout = settings.pop("tensors"), settings.pop("base_dropout")
            for key, value in settings.items():
                if f"lora.{key}" in asked_keys():
                    raise ValueError(
                        f"{key}={value}: expected none, since lora={tensors} has no {key}"
                    )
            add_deltas(net, tensors, base_dropout=base_dropout)
        else:
            if settings["rank"] == "auto":
                settings["rank"] = fitting_rank(net, settings["target_modules"])
                _info("lora.rank=auto: %d", settings["rank"])
            add_lora(net, **settings)
    net.train()


def fitting_rank(net: nn.Module, target_modules: Any) -> int:
    """The largest power of two, up to 64, with an adapter of at most a fifth of ``net``'s weights.

    Where a rank of 1 has more, it is 1 all the same.
    """
    per_rank = 0
    for weight in target_weights(net, target_modules).values():
        rows = len(weight.base)
        per_rank += rows + weight.base.numel() // rows
    rank = 64
    while rank > 1 and 5 * rank * per_rank > count_parameters(net)["base"]:
        rank //= 2
    return rank


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Freeze every parameter of ``net`` but those whose full name matches ``pattern``.

    ``net`` is then in train mode, dropout and batch normalisation included.
    """
    names = [name for name, _ in net.named_parameters()]
    try:
        chosen = {name for name in names if re.fullmatch(pattern, name)}
    except re.error as error:
        raise UserError(f"trainable={pattern}: expected a regular expression ({error})") from error
    if not chosen:
        raise UserError(
            f"trainable={pattern}: expected to match a parameter, of: {', '.join(names)}"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)
    net.train()


def build_module(
    cfg: DictConfig,
    net: nn.Module,
    data: ImageDataModule,
    base: Base | None = None,
    adapter: str | None = None,
) -> ClassifierModule:
    """The module that trains ``net``, which carries LoRA or is compared with ``base``.

    ``base`` is what ``net`` starts from; ``adapter`` the one that is trained on top of others.
    """
    _require_fit_together(cfg, data)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters |= {"base_sha256": base and base.sha256, "target": data.target}
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
            class_names=data.short_names,
            targets=data.targets,
            hyperparameters=hyperparameters,
        )
    module.configure_optimizers()  # as Lightning does late: what is refused is refused here
    return module


def _require_fit_together(cfg: DictConfig, data: ImageDataModule) -> None:
    """Refuse values that are each right on their own, but not together."""
    scheduler, distill = cfg.scheduler or {}, cfg.loss.get("distill")
    if scheduler.get("max_lr") and cfg.optimizer.lr_ratio != 1:
        raise UserError(
            f"optimizer.lr_ratio={cfg.optimizer.lr_ratio}: expected 1, since scheduler.max_lr sets "
            "one learning rate for all"
        )
    if -1 in (scheduler.get("T_max"), scheduler.get("total_iters"), scheduler.get("total_steps")):
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    if cfg.stage == "pretrain":
        needs_base = {
            "loss.distill": distill,
            "data.hardness": data.hardness,
            "data.mistakes": data.mistakes,
        }
        for key, value in needs_base.items():
            if value:
                raise UserError(
                    f"{key}={value}: expected 0, or null, since stage=pretrain has no base"
                )
    if data.replay == 0:
        if distill and cfg.loss.get("distill_on") in (None, "replay"):
            raise UserError(
                f"loss.distill={distill}: expected data.replay > 0, or loss.distill_on=target"
            )
        if cfg.loss.get("target_weight") is not None:
            raise UserError(
                f"loss.target_weight={cfg.loss.target_weight}: expected null, or data.replay > 0: "
                "without replay no images are weighed against others"
            )


def build_trainer(
    cfg: DictConfig, folder: Path, validates: bool = True, checkpoint: Path | None = None
) -> Trainer:
    """Lightning's Trainer with the configured callbacks and loggers, which write into ``folder``.

    Callbacks and plugins of ``cfg.trainer`` come beside the configured ones; a logger there takes
    the place of all others. ``checkpoint`` is where an earlier run is gone on with.
    """
    callbacks: list[Any] = [RandomStates(), _PlainSigterm()]
    for name, config in (cfg.get("callbacks") or {}).items():
        if config is not None:
            changes: dict[str, Any] = {}
            if config.get("dirpath", "") is None:
                changes["dirpath"] = str(folder / CHECKPOINTS)
            with config_group(f"callbacks.{name}"):
                callbacks.append(instantiate(config, **changes))
    loggers: list[Any] = []
    step: Any = torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint else 0
    for name, config in (cfg.get("logger") or {}).items():
        if config is not None:
            changes = {}
            if config.get("save_dir", "") is None:
                changes["save_dir"] = str(folder)
            if cfg.get("resume") is not None and config._target_.endswith("TensorBoardLogger"):
                changes["purge_step"] = step  # what was logged after the checkpoint is logged again
            if step and config._target_.endswith("CSVLogger"):
                changes["version"] = f"from_step_{step}"  # it would delete the file that is there
            with config_group(f"logger.{name}"):
                loggers.append(instantiate(config, **changes))
    with config_group("trainer"):
        given = dict(instantiate(cfg.trainer, _convert_="all", _partial_=True).keywords)
        callbacks += given.pop("callbacks", None) or []
        if loggers:
            callbacks.append(TensorBoardPage())
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
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*LeafSpec.* is deprecated",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
