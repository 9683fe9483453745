"""From a configuration to the parts of a run: data, network, base, adapters, module, trainer.

Nothing here changes the configuration; what is decided at run time, such as the class to repair or
the run's folder, is an argument.
"""

import copy
import json
import logging
import pydoc
import re
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
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
from lora_mnist.disk.results import RESULTS_FILE
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.lora import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    adapter_sha256,
    add_deltas,
    add_lora,
    count_parameters,
    has_lora,
    is_number,
    load_adapter,
    lora_state_dict,
    read_beneath,
    read_metadata,
    remove_lora,
    save_adapter,
    set_lora_scale,
    target_weights,
)
from lora_mnist.project import CONFIGS, program
from lora_mnist.show.loggers import TensorBoardPage
from lora_mnist.show.progress import ProgressLines
from lora_mnist.show.verdict import targets_of

log = logging.getLogger(__name__)
_info, _warn = rank_zero_only(log.info), rank_zero_only(log.warning)

#: How often a single run is validated, since somebody may watch it; a sweep's job is at its end.
_VALIDATIONS = 4
#: How often a run is validated where a callback chooses by that.
_CHOICES = 10
#: Of cfg.scheduler, what Lightning's loop needs; the rest is the schedule's own.
_SCHEDULE_KEYS = ("interval", "frequency", "monitor", "strict")
#: Of cfg.data, what is about training alone.
TRAINING_KEYS = (
    *("batch_size", "replay", "hardness", "seed", "augment", "mistakes", "mistakes_test"),
)


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def asked_keys() -> set[str]:
    """The keys that the command line sets, ``net`` and ``lora.rank``; empty without one."""
    if not HydraConfig.initialized():
        return set()
    return {
        override.partition("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task
    }


def require_known_keys(cfg: DictConfig, entry: str) -> None:
    """Refuse a key that nothing reads, such as one added with + by mistake.

    What is added further down, as ``+trainer.fast_dev_run=true``, is an argument of something that
    itself refuses what it does not know.

    Args:
        cfg: the configuration.
        entry: the name of its file in ``configs/``.
    """
    known = {"base_name", "run_name"}
    for name in (f"{entry}.yaml", f"stage/{cfg.stage}.yaml"):
        if (path := CONFIGS / name).exists():
            config: Any = OmegaConf.load(path)
            for default in config.pop("defaults", []):
                for group in default if isinstance(default, DictConfig) else []:
                    known.add(str(group).partition("@")[0].split()[-1].strip("/"))
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

    Args:
        cfg: the run's configuration.
        stage: what the images are for; ``None``: no images, only their mean and deviation.
        target: train on this class, or these classes, alone.
        changes: arguments of the data module that differ from ``cfg.data``.

    Raises:
        UserError: if a value of ``cfg.data`` cannot be used, or the files are damaged or missing.
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

    Raises:
        UserError: if there is no such class, or a value of ``cfg.net`` cannot be used.
    """
    if OmegaConf.is_missing(cfg.net, "_target_"):
        raise UserError("net._target_: missing; expected a class, as net._target_=my_nets.Net")
    target, here = f"net._target_={cfg.net._target_}", str(cfg.paths.here)
    path = list(sys.path)
    sys.path.append(here)
    try:
        kind = pydoc.locate(str(cfg.net._target_))
        if kind is None:
            raise UserError(
                f"{target}: not found; expected MODULE.CLASS, with MODULE in {here} or installed"
            )
        with config_group("net"):
            net: Any = instantiate(cfg.net, _convert_="all")
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{target}: {one_line(error)}") from error
    except UserError as error:
        # net=custom alone takes keys that no file lists.
        more = "" if str(target).startswith("net._target_=lora_mnist.") else "; expected net=custom"
        raise UserError(f"{error}{more if OmegaConf.is_struct(cfg.net) else ''}") from error
    finally:
        sys.path[:] = path
    if not isinstance(net, nn.Module):
        raise UserError(f"{target}: gives a {type(net).__name__}; expected an nn.Module")
    return net


@torch.no_grad()
def require_fit(net: nn.Module, data: ImageDataModule, images: Tensor) -> None:
    """Refuse a network that cannot take these images, or has not one output for each class.

    Args:
        net: the network; one forward pass in eval mode leaves it as it is.
        data: whose classes ``net`` is to tell apart.
        images: some of its images, uint8, shape (N, channels, height, width).

    Raises:
        UserError: with both shapes.
    """
    batch = data.normalise(images)
    modes = {module: module.training for module in net.modules()}
    try:
        output: Any = net.eval()(batch)
    except Exception as error:  # whatever the network's own layers raise
        raise UserError(
            f"net: cannot take images of shape {tuple(batch.shape)} from {data.name} "
            f"({one_line(error)})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
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

    Raises:
        UserError: if there is no such file, it holds no weights of this network, or the adapter's
            base is none that is kept here.
    """
    net.eval()  # in train mode, batch normalisation would move its running statistics
    current = base_folder(cfg) / f"{cfg.base_name}.ckpt"
    path, sha256 = Path(cfg.base_ckpt or current), None
    is_default = cfg.stage == "lora" and path == current and "base_ckpt" not in asked_keys()
    specs = adapter_specs(cfg) if is_default or not cfg.base_ckpt else []
    if specs:
        try:
            sha256 = _metadata(specs[0]["path"]).get("base_sha256")
        except ValueError as error:
            raise UserError(f"adapter={one_line(error)}") from error
        path = (sha256 and find_base(base_folder(cfg), sha256)) or current
    try:
        base = read_base(path, net)
    except FileNotFoundError as error:
        advice = f"make it with: {program('train')} stage=pretrain{_choices(cfg)}"
        if not str(cfg.net._target_).startswith("lora_mnist."):
            advice = f"expected the weights of {cfg.net._target_}"
        raise UserError(f"base_ckpt={path}: no such file; {advice}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error
    if sha256 and base.sha256 != sha256 and not cfg.allow_other_base:
        raise UserError(
            f"adapter={specs[0]['path']}: its base, {sha256[:12]}..., is not in "
            f"{base_folder(cfg)}; expected base_ckpt=FILE, the weights that it was trained on"
        )
    return base


def _choices(cfg: DictConfig) -> str:
    """The choices of network and data that a command has to repeat; nothing for the defaults."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    usual = {"net": "mlp", "data": "mnist"}
    return "".join(f" {k}={choices[k]}" for k, v in usual.items() if choices.get(k, v) != v)


def adapter_specs(cfg: DictConfig) -> list[dict[str, Any]]:
    """``path``, ``name`` and ``scale`` of each adapter of ``cfg.adapter``.

    ``cfg.adapter`` is null, a folder, a mapping of ``path`` and perhaps ``scale`` and ``name``, or
    a list of such. A folder is an adapter's own, or that of the run that left it; a file is a
    checkpoint of such a run. An adapter without a name is called after what it repairs, ``nines``
    and then ``nines2``, or else after its folder, its file, or its run's folder.

    Raises:
        UserError: if an adapter is described in another way, or cannot be read.
    """
    adapter = cfg.get("adapter")  # stage=pretrain has none
    chosen = adapter if isinstance(adapter, ListConfig) else [adapter]
    specs: list[dict[str, Any]] = []
    for adapter in chosen:
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
        if _is_checkpoint(path) and cfg.get("stage") == "lora":
            raise UserError(f"adapter={path}: expected a folder, since stage=lora starts here")
        name = None if spec.get("name") is None else str(spec["name"])
        specs.append({"scale": 1.0, **spec, "path": path, "name": name})
    # The last two are columns of the table that names adapters.
    taken = {*(spec["name"] for spec in specs), "base", "all adapters"}
    for spec in specs:
        path = spec["path"]
        if spec["name"] is None:
            try:
                repairs = _metadata(path).get("repairs", "")
            except ValueError as error:
                raise UserError(f"adapter={one_line(error)}") from error
            name = repairs if repairs.isprintable() else ""  # it may be a stranger's
            name = name or (path.parent.name if path.name == "adapter" else path.name)
            spec["name"] = _numbered(name.removesuffix(".ckpt"), taken)
            taken.add(spec["name"])
    return specs


def _numbered(name: str, taken: Collection[str]) -> str:
    """``name``, or with the first number from 2 on with which it is not ``taken``."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}{number}", number + 1
    return free


def with_beneath(cfg: DictConfig, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``specs`` and, before each, the adapters that it was trained on top of, if not among them.

    Raises:
        UserError: if an adapter cannot be read, or one beneath it is not below ``paths.outputs``.
    """
    stacked: dict[str, dict[str, Any]] = {}  # by the SHA-256 of the adapter's file
    for spec in specs:
        if _is_checkpoint(spec["path"]):
            stacked[f"{spec['path']} {len(stacked)}"] = spec
            continue
        try:
            beneath = read_beneath(spec["path"])
            own = adapter_sha256(spec["path"])
        except (ValueError, OSError) as error:
            raise UserError(f"adapter={one_line(error)}") from error
        for sha256, scale in beneath:
            if sha256 in stacked:
                continue
            for file in sorted(Path(cfg.paths.outputs).rglob(WEIGHTS_NAME)):
                if adapter_sha256(file.parent) == sha256:
                    (below,) = adapter_specs(OmegaConf.create({"adapter": str(file.parent)}))
                    taken = [other["name"] for other in (*specs, *stacked.values())]
                    name = _numbered(below["name"], taken)
                    stacked[sha256] = below | {"scale": scale, "name": name}
                    break
            else:
                raise UserError(
                    f"adapter={spec['path']}: stands on the adapter {sha256[:12]}..., which is not "
                    f"in {cfg.paths.outputs}; expected it on the command line, as "
                    f"adapter=[FOLDER,{spec['path']}]"
                )
        # The same adapter twice is two adapters.
        stacked[f"{own} {len(stacked)}" if own in stacked else own] = spec
    return list(stacked.values())


def load_adapters(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule | None = None
) -> dict[str, float]:
    """Stack the adapters of ``cfg.adapter`` on ``net``, turned up as far as ``cfg.scale`` says.

    Adapters beneath them, on which they were trained, are loaded first. With ``scale=auto`` the
    validation images of ``data`` decide how far: for several adapters one after another, those
    behind still off; those that are only beneath stay as they were.

    Returns:
        The adapters' scales by their names.

    Raises:
        UserError: if an adapter is described in another way than in :func:`adapter_specs`, or
            cannot be loaded.
    """
    asked = cfg.get("scale", 1)
    if cfg.adapter is None and asked != 1:
        raise UserError(f"scale={asked}: expected 1, since there is no adapter")
    is_auto = asked == "auto"
    if not is_auto and not is_number(asked):
        raise UserError(f"scale={asked}: expected a number, 1 as trained, or auto")
    if is_auto and data is not None and cfg.adapter is not None:
        with config_group("data"):
            data.prepare_data()
            data.setup("validate")
        require_validation("scale=auto", data)
    scales = {}
    specs = adapter_specs(cfg)
    for spec in with_beneath(cfg, specs):
        path, name, scale = spec["path"], spec["name"], spec["scale"]
        with TemporaryDirectory() as unpacked:
            try:
                folder = _unpack(path, net, unpacked) if _is_checkpoint(path) else path
                load_adapter(net, folder, cfg.allow_other_base, name=name, scale=scale)
                if is_auto and data is not None and spec in specs:
                    factor = validation_dial(cfg, net, data, name=name)["advised"]
                    _info("scale=%g of %s, as validation images advise", factor, name)
                else:
                    factor = 1 if is_auto else asked
                scales[name] = factor * scale
                set_lora_scale(net, scales[name], name)
            except ValueError as error:
                reason = one_line(error).replace(unpacked, str(path))
                raise UserError(f"adapter={reason}") from error
    return scales


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".ckpt"


def _metadata(path: Path) -> dict[str, str]:
    """What is known of an adapter before it is loaded: the base that it was made for, and more."""
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
    if has_lora(twin):
        remove_lora(twin)
    choices = {key: value for key, value in settings["lora"].items() if key != "scale"}
    add_lora(twin, **choices)
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

    A run below ``paths.outputs`` knows in its ``.hydra/`` what it was trained with; what the
    command line says wins. ``latest`` is the latest of the network and the data that the command
    line asks for.

    Raises:
        UserError: if there is no such adapter, or a job of a sweep asks for the latest: while that
            goes on, another adapter may become the latest.
    """
    cfg = cfg.copy()
    asked_groups = {key.partition(".")[0] for key in asked_keys()}
    # Another net.hidden_sizes is another network; another data.mean is of the same images.
    groups = ({"net"} & asked_groups) | ({"data"} & asked_keys())
    several = isinstance(cfg.adapter, ListConfig)
    chosen = list(cfg.adapter) if several else [cfg.adapter]
    for place, adapter in enumerate(chosen):
        path = adapter.get("path") if isinstance(adapter, DictConfig) else adapter
        if path == "latest":
            found = str(_latest_adapter(cfg, groups))
            chosen[place] = {**adapter, "path": found} if adapter != "latest" else found
    cfg.adapter = chosen if several else chosen[0]
    specs = adapter_specs(cfg)
    if not specs or not HydraConfig.initialized():
        return cfg
    folder, outputs = specs[0]["path"].absolute().parent, Path(cfg.paths.outputs).resolve()
    folder = (folder.parent if _is_checkpoint(specs[0]["path"]) else folder).resolve()
    # A network is code: somebody else's run does not choose what is imported.
    run = _trained_with(folder) if folder.is_relative_to(outputs) else None
    if run is None:
        return cfg
    with open_dict(cfg):
        if "net" not in groups:
            cfg.net, cfg.base_name, cfg.paths.here = run["net"], run["base_name"], run["here"]
        if "data" not in groups:
            asked = cfg.data
            training = {key: asked[key] for key in TRAINING_KEYS if key in asked}
            cfg.data = run["data"] | training
            for key in asked_keys():
                if key.startswith("data."):
                    OmegaConf.update(cfg, key, OmegaConf.select(asked, key.removeprefix("data.")))
    return cfg


def adapter_targets(cfg: DictConfig, classes: list[str]) -> list[int] | None:
    """The classes that the adapters of ``cfg.adapter`` repair, as results.json of their runs says.

    ``None`` where that is not known of each, or is told of other classes than these.
    """
    targets: list[int] = []
    for spec in adapter_specs(cfg):
        try:
            run = json.loads((spec["path"].parent / RESULTS_FILE).read_text())
            own = targets_of(run) if run["classes"] == classes else []
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not own or not all(target in range(len(classes)) for target in own):
            return None
        targets += [target for target in own if target not in targets]
    return targets or None


def _latest_adapter(cfg: DictConfig, groups: set[str]) -> Path:
    """The folder of the latest adapter for the network and data that the command line asks for."""
    own: Any = OmegaConf.to_container(cfg, resolve=False)

    def fits(marker: Path) -> bool:
        run = _trained_with(marker.parents[1])
        if run is None:
            return not groups
        if "net" in groups and run["net"] != own["net"]:
            return False
        return "data" not in groups or all(
            run["data"].get(key) == own["data"].get(key) for key in ("_target_", "name", "dataset")
        )

    runs = Path(cfg.paths.outputs, "lora")
    marker = latest(runs, f"*/adapter/{CONFIG_NAME}", fits)
    if marker is None:
        what = " for this net and data" if groups else ""
        raise UserError(
            f"adapter=latest: expected an adapter{what} in {runs}, found none; "
            f"make one with: {program('train')} stage=lora"
        )
    if is_sweep():
        raise UserError(
            "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
            f"different ones: adapter={marker.parents[1]}"
        )
    return marker.parents[1]


def _trained_with(folder: Path) -> dict[str, Any] | None:
    """``net``, ``data`` and ``base_name`` of the run in a folder, and ``here``, where it began."""
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"))
        hydra: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "hydra.yaml"))
        here = hydra["hydra"]["runtime"]["cwd"]
        data = {key: value for key, value in config["data"].items() if key not in TRAINING_KEYS}
        images = data.get("data_dir")
        if isinstance(images, str) and not images.startswith("$"):
            data["data_dir"] = str(Path(here, images))
        return {"net": config["net"], "data": data, "base_name": config["base_name"], "here": here}
    except (OSError, KeyError, TypeError):
        return None


# --- module and trainer --------------------------------------------------------------------------


def add_configured_lora(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter as ``cfg.lora`` says on ``net``, in train mode; the base stays in eval.

    Raises:
        UserError: if a value of ``cfg.lora`` cannot be used.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.lora, resolve=True)  # type: ignore[assignment]
    scale = settings.pop("scale")
    if scale != "auto" and not (is_number(scale) and scale > 0):
        raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
    with config_group("lora"):
        if "tensors" in settings:
            add_deltas(net, **settings).train()
            return
        fitting = fitting_rank(net, settings["target_modules"])
        if settings["rank"] == "auto":
            settings["rank"] = fitting
            _info("lora.rank=auto: %d", fitting)
        add_lora(net, **settings).train()
    if settings["rank"] > fitting:
        share = count_parameters(net)["increase_percent"]
        _warn(
            "lora.rank=%d: the adapter has %.0f%% of the network's weights; lora.rank=%d has at "
            "most a fifth, and lora.rank=auto finds that out",
            *(settings["rank"], share, fitting),
        )


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


def without_unused(cfg: DictConfig) -> DictConfig:
    """``cfg`` without a recipe's rank and the like, where ``cfg.lora`` trains whole tensors.

    Raises:
        UserError: if the command line sets such a key.
    """
    if "tensors" not in cfg.lora:
        return cfg
    used = ("tensors", "scale", "base_dropout")
    for key in sorted(asked_keys()):
        if key.startswith("lora.") and key.removeprefix("lora.") not in used:
            raise UserError(
                f"{key}={OmegaConf.select(cfg, key)}: has no effect with lora={cfg.lora.tensors}; "
                "expected none but lora.scale and lora.base_dropout"
            )
    cfg = cfg.copy()
    cfg.lora = {key: cfg.lora[key] for key in used}
    return cfg


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Freeze every parameter of ``net`` but those whose full name matches ``pattern``.

    ``net`` is then in train mode, dropout and batch normalisation included.

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
    net.train()


def build_module(
    cfg: DictConfig,
    net: nn.Module,
    data: ImageDataModule,
    base: Base | None = None,
    adapter: str | None = None,
) -> ClassifierModule:
    """The module that trains ``net``, which carries LoRA or is compared with ``base``.

    Args:
        cfg: the run's configuration.
        net: the network.
        data: what it is trained on.
        base: what ``net`` starts from; ``None`` with stage=pretrain.
        adapter: the name of the trained adapter, where others are beneath it.

    Raises:
        UserError: if a value of ``cfg`` cannot be used, or two do not go together.
    """
    _require_fit_together(cfg, data)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters |= {"base_sha256": base and base.sha256, "target": data.target}
    hyperparameters |= {"classes": data.classes, "data_sha256": dict(data.sha256)}
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    lr = cfg.optimizer.lr
    if type(lr) not in (int, float) or not 0 <= lr < float("inf"):
        raise UserError(f"optimizer.lr={lr}: expected a finite number >= 0")
    with config_group("optimizer"):
        settings = {k: v for k, v in cfg.optimizer.items() if k not in ("lr", "lr_ratio")}
        optimizer = instantiate(settings, _convert_="all")  # else checkpoints hold what is no list
        # Lightning builds both late: what they refuse, they refuse here.
        trial = optimizer([p for p in net.parameters() if p.requires_grad], lr=float(lr))
    with config_group("scheduler"):
        schedule, scheduler = {"interval": "step"}, None
        if cfg.scheduler:
            settings = dict(cfg.scheduler)
            schedule |= {key: settings.pop(key) for key in _SCHEDULE_KEYS if key in settings}
            if schedule["interval"] not in ("step", "epoch"):
                raise ValueError(f"interval={schedule['interval']}: expected step or epoch")
            scheduler = instantiate(settings, _convert_="all")
            scheduler(trial)
    if cfg.compile:
        net.compile()  # in place: its tensors keep their names
    with config_group("optimizer"):
        return ClassifierModule(
            net,
            len(data.classes),
            loss=loss,
            optimizer=optimizer,
            lr=float(lr),
            lr_ratio=cfg.optimizer.lr_ratio,
            replay=data.replay,
            scheduler=scheduler,
            schedule=schedule,
            base_tensors=base.tensors if base and not has_lora(net) else None,
            adapter=adapter,
            class_names=data.short_names,
            targets=data.targets,
            hyperparameters=hyperparameters,
        )


def _require_fit_together(cfg: DictConfig, data: ImageDataModule) -> None:
    """Refuse values that are each right on their own, but not together."""
    if cfg.scheduler and cfg.scheduler.get("max_lr") and cfg.optimizer.lr_ratio != 1:
        raise UserError(
            f"optimizer.lr_ratio={cfg.optimizer.lr_ratio}: expected 1, since scheduler.max_lr sets "
            "one learning rate for all"
        )
    counts = ("T_max", "total_iters", "total_steps")
    if cfg.scheduler and -1 in (cfg.scheduler.get(key) for key in counts):
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    distill, target_weight = cfg.loss.get("distill"), cfg.loss.get("target_weight")
    if cfg.stage == "pretrain":
        needs_base = {"loss.distill": distill, "data.hardness": data.hardness}
        for key, value in {**needs_base, "data.mistakes": data.mistakes}.items():
            if value:
                raise UserError(
                    f"{key}={value}: expected 0, or null, since stage=pretrain has no base"
                )
    if data.replay == 0:
        if distill and cfg.loss.get("distill_on") in (None, "replay"):
            raise UserError(
                f"loss.distill={distill}: expected data.replay > 0, or loss.distill_on=target"
            )
        if target_weight is not None:
            raise UserError(
                f"loss.target_weight={target_weight}: expected null, or data.replay > 0: without "
                "replay no images are weighed against others"
            )


def build_trainer(
    cfg: DictConfig, folder: Path, validates: bool = True, checkpoint: Path | None = None
) -> Trainer:
    """Lightning's Trainer with the configured callbacks and loggers; a bar only on a terminal.

    Callbacks and plugins of ``cfg.trainer`` come beside the configured ones; a logger there takes
    the place of all others.

    Args:
        cfg: the run's configuration.
        folder: the run's folder, where loggers and checkpoints write.
        validates: whether there are validation images.
        checkpoint: where an earlier run is gone on with; ``None``: at the beginning.

    Raises:
        UserError: if a value of ``cfg`` cannot be used.
    """
    callbacks: list[Any] = [RandomStates(), _PlainSigterm()]
    for name, config in (cfg.get("callbacks") or {}).items():
        if config is None:
            continue
        # A null dirpath is the run's folder.
        changes = (
            {"dirpath": str(folder / CHECKPOINTS)} if config.get("dirpath", "") is None else {}
        )
        with config_group(f"callbacks.{name}"):
            callbacks.append(instantiate(config, **changes))
    loggers: list[Any] = []
    step: Any = torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint else 0
    for name, config in (cfg.get("logger") or {}).items():
        if config is None:
            continue
        changes = {"save_dir": str(folder)} if config.get("save_dir", "") is None else {}
        if cfg.get("resume") is not None and str(config._target_).endswith("TensorBoardLogger"):
            changes["purge_step"] = step  # what was logged after the checkpoint is logged again
        if step and str(config._target_).endswith("CSVLogger"):
            changes["version"] = f"from_step_{step}"  # it would delete the file that is there
        with config_group(f"logger.{name}"):
            loggers.append(instantiate(config, **changes))
    with config_group("trainer"):
        given = instantiate(cfg.trainer, _convert_="all", _partial_=True).keywords
        if "logger" in given:
            loggers = given["logger"]
        elif loggers:
            callbacks.append(TensorBoardPage())
        callbacks += _listed(given.get("callbacks"))
        if not sys.stdout.isatty():
            callbacks.append(ProgressLines())
        settings: dict[str, Any] = {
            "default_root_dir": str(folder),
            # Without a callback of ours Lightning would add one of its own.
            "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
            "enable_progress_bar": sys.stdout.isatty()
            or any(isinstance(c, ProgressBar) for c in callbacks),
        }
        monitors = [str(getattr(callback, "monitor", "")) for callback in callbacks]
        chooses = any(monitor.startswith("val") for monitor in monitors)
        if not validates:
            settings["limit_val_batches"] = 0
            if chooses:
                raise UserError(
                    "data.val_size=0: expected > 0, since callbacks choose by validation images"
                )
        elif chooses or (loggers and not is_sweep()):
            settings |= _validations(given, _CHOICES if chooses else _VALIDATIONS)
        settings |= given
        settings |= {"callbacks": callbacks, "logger": loggers or False}
        settings["plugins"] = [AtomicCheckpointIO(), *_listed(given.get("plugins"))]
        try:
            trainer = Trainer(**settings)
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
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


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _validations(settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Validate so many times on the way, at the end included."""
    if settings.keys() & {"val_check_interval", "check_val_every_n_epoch"}:
        return {}
    steps = settings.get("max_steps", -1)
    if steps < 0:
        return {"val_check_interval": 1 / count}  # of an epoch
    batches = steps * settings.get("accumulate_grad_batches", 1)
    return {
        "val_check_interval": max(1, batches // count),
        "check_val_every_n_epoch": None,  # counted over epochs
    }


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
