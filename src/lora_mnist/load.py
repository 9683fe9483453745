"""What a command starts from: the base and the adapters that its configuration names."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig
from torch import nn

from lora_mnist.config import require_bool
from lora_mnist.disk.base import Base, find_base, read_base
from lora_mnist.errors import UserError, one_line
from lora_mnist.lora import CONFIG_NAME, load_adapter, lora_names, read_base_sha256


def load_base(cfg: DictConfig, net: nn.Module) -> Base:
    """Load the base into ``net``, in eval mode; return it, to compare with later.

    The base is ``cfg.base_ckpt``; where that is null, the base that the first adapter of
    ``cfg.adapter`` was made for, found by its SHA-256, or else the current one.

    Raises:
        UserError: if there is no such file, it holds no weights of this network, or the adapter's
            base is none that is kept here.
    """
    # In train mode, whoever asks the base something would move its running statistics.
    net.eval()
    if cfg.base_ckpt:
        return _read(Path(cfg.base_ckpt), cfg, net)
    needed = _base_of_adapter(cfg)
    found = find_base(base_folder(cfg), needed) if needed else None
    if not needed or found:
        return _read(found or current_base(cfg), cfg, net)
    # Perhaps it is the current one, whose own file is gone.
    try:
        base = _read(current_base(cfg), cfg, net)
        if base.sha256 == needed or cfg.allow_other_base:
            return base
    except UserError:
        pass
    raise UserError(
        f"adapter={adapter_specs(cfg)[0]['path']}: its base, {needed[:12]}..., is not in "
        f"{base_folder(cfg)}; expected base_ckpt=FILE, the weights that it was trained on, and the "
        "net and data that belong to them"
    )


def _read(path: Path, cfg: DictConfig, net: nn.Module) -> Base:
    try:
        if not path.exists():
            raise UserError(f"base_ckpt={path}: no such file; {_expected(cfg, path)}")
        return read_base(path, net)
    except (ValueError, OSError) as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error


def _expected(cfg: DictConfig, path: Path) -> str:
    """What to do about a base that is not there."""
    command = " ".join(["python train.py stage=pretrain", *_choices(cfg)])
    if str(cfg.net._target_).startswith("lora_mnist."):
        return f"make it with: {command}"
    weights = f"expected the weights of {cfg.net._target_}"
    if path != current_base(cfg):
        return weights
    return f"{weights} as base_ckpt=FILE; or make some with: {command}"


def _choices(cfg: DictConfig) -> list[str]:
    """What a command has to say for the same network and data; nothing for the defaults."""
    module, _, name = str(cfg.net._target_).rpartition(".")
    chosen = [f"net={name.lower()}"] if name != "MLP" else []
    if module != "lora_mnist.classifier.net":
        keys = [f"net.{key}={value}".replace(" ", "") for key, value in cfg.net.items()]
        chosen = ["net=custom", *map(shlex.quote, keys)]
    kind = str(cfg.data._target_).rpartition(".")[2]
    data = "folder" if kind == "FolderDataModule" else str(cfg.data.name)
    chosen += [f"data={data}"] if data != "mnist" else []
    return [*chosen, *([f"data.data_dir={cfg.data.data_dir}"] if data == "folder" else [])]


def base_folder(cfg: DictConfig) -> Path:
    """Where every base keeps a file of its own."""
    return Path(cfg.paths.outputs, "base")


def current_base(cfg: DictConfig) -> Path:
    """The file of the last base of this kind of network and data."""
    return base_folder(cfg) / f"{cfg.base_name}.ckpt"


def _base_of_adapter(cfg: DictConfig) -> str | None:
    """The SHA-256 of the base that the first adapter was made for."""
    specs = adapter_specs(cfg)
    try:
        return read_base_sha256(specs[0]["path"]) if specs else None
    except ValueError as error:
        raise UserError(f"adapter={one_line(error)}") from error


def with_latest_adapter(cfg: DictConfig) -> DictConfig:
    """``cfg`` with the folder of the last run of stage=lora wherever its ``adapter`` is ``latest``.

    A command asks once: another run may end before it has found the base and loaded the adapter.

    Raises:
        UserError: if there is no latest adapter, or this is a job of a sweep: while that goes on,
            another adapter may become the latest.
    """
    found = cfg.copy()
    found.adapter = _with_latest(cfg.adapter, Path(cfg.paths.outputs, "lora"))
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping and found.adapter != cfg.adapter:
        raise UserError(
            f"adapter={cfg.adapter}: expected the folder itself in a sweep, whose jobs could find "
            f"different ones: adapter={found.adapter}"
        )
    return found


def _with_latest(adapter: Any, runs: Path) -> Any:
    if adapter == "latest":
        return _latest_adapter(runs)
    if isinstance(adapter, ListConfig):
        return [_with_latest(each, runs) for each in adapter]
    if isinstance(adapter, DictConfig) and adapter.get("path") == "latest":
        return {**adapter, "path": _latest_adapter(runs)}
    return adapter


def _latest_adapter(runs: Path) -> str:
    # The folders are named by the time.
    found = sorted(path.parents[1] for path in runs.glob(f"*/adapter/{CONFIG_NAME}"))
    if not found:
        raise UserError(
            f"adapter=latest: expected an adapter in {runs}, found none; "
            "make one with: python train.py stage=lora"
        )
    return str(found[-1])


def adapter_specs(cfg: DictConfig) -> list[dict[str, Any]]:
    """``path``, ``name`` and perhaps ``scale`` of each adapter of ``cfg.adapter``.

    ``cfg.adapter`` is null, a folder, a mapping of ``path`` and perhaps ``scale`` and ``name``, or
    a list of such. A folder is an adapter's own, or that of the run that left it. An adapter
    without a name is called after its folder, or its run's.

    Raises:
        UserError: if an adapter is described in another way.
    """
    chosen = cfg.adapter if isinstance(cfg.adapter, ListConfig) else [cfg.adapter]
    return [_adapter_spec(adapter) for adapter in chosen if adapter is not None]


def _adapter_spec(adapter: Any) -> dict[str, Any]:
    spec: Any = {"path": adapter} if isinstance(adapter, str) else adapter
    if not (
        isinstance(spec, Mapping)
        and {"path"} <= spec.keys() <= {"path", "scale", "name"}
        and isinstance(spec["path"], str)
    ):
        raise UserError(
            f"adapter={adapter}: expected a folder, latest, or a mapping of path, scale and name"
        )
    path = Path(spec["path"])
    if not (path / CONFIG_NAME).exists() and (path / "adapter").is_dir():
        path /= "adapter"
    name = spec.get("name") or (path.parent.name if path.name == "adapter" else path.name)
    return {"scale": 1.0, **spec, "path": path, "name": str(name)}


def load_adapters(cfg: DictConfig, net: nn.Module) -> list[str]:
    """Stack the adapters of ``cfg.adapter`` on ``net``; return their names.

    Raises:
        UserError: if an adapter is described in another way than in :func:`adapter_specs`, or
            cannot be loaded.
    """
    require_bool(cfg, "allow_other_base")
    for spec in adapter_specs(cfg):
        try:
            load_adapter(net, spec["path"], cfg.allow_other_base, spec["name"], spec["scale"])
        except ValueError as error:
            raise UserError(f"adapter={one_line(error)}") from error
    return lora_names(net)
