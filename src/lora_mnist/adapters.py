"""The base and the adapter that a command names, put on its network.

``adapter`` is null, a folder, or ``latest``. A folder is an adapter's own, or that of the run that
left it.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from lora_mnist.checks import require_validation
from lora_mnist.classifier.dial import approximate_dial
from lora_mnist.classifier.net import make_net
from lora_mnist.data import ImageDataModule
from lora_mnist.data.make import own_preprocessing
from lora_mnist.disk.base import (
    Base,
    find_base,
    load_weights,
    read_base,
    versioned_base_path,
    write_base,
)
from lora_mnist.disk.record import (
    foreign_code,
    inherited,
    make_record,
    without_former_keys,
)
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, latest
from lora_mnist.errors import UserError, is_number, one_line
from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.model import set_lora_scale
from lora_mnist.lora.peft import CONFIG_NAME, read_metadata
from lora_mnist.project import Run, program

_info = rank_zero_only(logging.getLogger(__name__).info)

#: A command uses these where neither its command line nor a file says otherwise.
_DEFAULT_NET = {"_target_": "lora_mnist.MLP"}
_DEFAULT_DATA = "lora_mnist.data.MNISTDataModule"


@contextmanager
def _adapter_errors() -> Iterator[None]:
    """Turn what is wrong with an adapter's files into a :class:`UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"adapter={one_line(error)}") from error


# --- the base --------------------------------------------------------------------------------


def resolve_and_load_base(
    cfg: DictConfig, run: Run | None = None
) -> tuple[DictConfig, nn.Module, Base]:
    """The base that a command names, on its network.

    A key of ``net`` or ``data`` that ``cfg`` leaves null is taken from the first of these that has
    it: the adapter's file, the base's file, the network itself (:func:`.own_preprocessing`), the
    default of its class. A line of the log says what came from where.

    The base is ``cfg.base_ckpt``. If that is null, it is the base that the adapter names by
    SHA-256; without an adapter, the current one.

    Returns:
        A copy of ``cfg`` with these values and the paths of adapter and base; the network
        with the base's weights, in eval mode but not frozen; and the base, to compare with later.

    Raises:
        UserError: if there is no such adapter or base, they do not fit, or code that a file names
            is to be run without ``cfg.trust``.
    """
    cfg = cfg.copy()
    keys_from: dict[str, list[str]] = {}
    record: Mapping[str, Any] = {}
    if cfg.get("adapter") is not None:
        cfg.adapter = str(adapter_folder(cfg, run))
        with _adapter_errors():
            record = read_metadata(cfg.adapter)
        cfg, keys_from["the adapter"] = _with_record(cfg, record, f"adapter={cfg.adapter}")
    current = current_base_path(cfg)  # its name depends on images and network
    path, sha256 = Path(cfg.base_ckpt or current), None
    if cfg.base_ckpt is None:
        sha256 = record.get("base_sha256")
        own = find_base(Path(cfg.paths.bases), sha256) if sha256 else None
        path = own or current
    not_here = (
        f"adapter={cfg.get('adapter')}: its base is not here; expected base_ckpt=FILE, the weights "
        f"with SHA-256 {sha256}"
    )
    try:
        file = read_base(path)
    except FileNotFoundError as error:
        if sha256:
            raise UserError(not_here) from error
        cfg, _ = _with_record(cfg, {"net": _DEFAULT_NET}, None)
        make_net(cfg)  # first a wrong network, after which the base's file is called
        message = f"base_ckpt={path}: no such file; expected the weights of {cfg.net._target_}"
        if path == current:
            make = f"{program('train')} stage=pretrain"
            message += f": base_ckpt=FILE, or make them with {make} and the same data and net"
        raise UserError(message) from error
    except (ValueError, OSError) as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error
    cfg.base_ckpt = str(path)
    cfg, keys_from["the base"] = _with_record(cfg, file.record, f"base_ckpt={path}")
    cfg, _ = _with_record(cfg, {"net": _DEFAULT_NET, "data": {"_target_": _DEFAULT_DATA}}, None)
    net = make_net(cfg)
    net.eval()  # in train mode, batch normalisation would move its running statistics
    try:
        base = load_weights(net, file)
    except ValueError as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error
    if sha256 and base.sha256 != sha256 and not cfg.allow_other_base:
        raise UserError(not_here)
    cfg, keys_from["the network"] = with_data_defaults(cfg, net)
    lines = [f"from {source}: {', '.join(keys)}" for source, keys in keys_from.items() if keys]
    keys = run.typed_keys if run else set()
    typed = sorted(key for key in keys if key.partition(".")[0] in ("net", "data"))
    if lines and typed:
        lines.append(f"typed: {', '.join(typed)}")
    if lines:
        _info("%s", "; ".join(lines))
    return cfg, net, base


def with_data_defaults(cfg: DictConfig, net: nn.Module) -> tuple[DictConfig, list[str]]:
    """A copy of ``cfg`` with what its images lack: what ``net`` says of them, then MNIST's folder.

    Returns:
        The copy, and the keys whose values are the network's.
    """
    keys: list[str] = []
    if cfg.data._target_ != _DEFAULT_DATA and "image_size" in cfg.data:
        cfg, keys = _with_record(cfg, {"data": own_preprocessing(cfg, net)}, None)
    mnist = {"_target_": _DEFAULT_DATA, "data_dir": str(cfg.paths.data)}
    return _with_record(cfg, {"data": mnist}, None)[0], keys


def _with_record(
    cfg: DictConfig, record: Mapping[str, Any], named: str | None
) -> tuple[DictConfig, list[str]]:
    """A copy of ``cfg`` with the values of a record that it lacks, and the keys of these values.

    ``named`` is the override that names the record's file, which may be a stranger's: code in it is
    refused without ``cfg.trust``. Trusted code is looked for in the folder of its training.
    ``None``: the record is of our own making.
    """
    cfg = cfg.copy()
    keys: list[str] = []
    for group in ("net", "data"):
        settings: Any = OmegaConf.to_container(cfg[group])
        stored = record.get(group, {})
        if group == "data":
            try:
                stored = without_former_keys(stored, settings.get("transform"))
            except ValueError as error:
                raise UserError(f"{named}: {error}") from error
        values = inherited(settings, stored)
        foreign = foreign_code(values, group, settings.get("_target_")) if named else None
        if foreign and not cfg.get("trust"):
            raise UserError(
                f"{named}: its file names {foreign}, which could run code; expected trust=true to "
                "run it, or net=... and data=... as in training"
            )
        if foreign:
            cfg.paths.here = record.get("made", {}).get("folder", cfg.paths.here)
        with open_dict(cfg):
            cfg[group] = settings | values
        if group == "data":
            keys += [key for key in values if key != "_target_"]
        elif values:
            keys.append(group)
    return cfg, keys


def adapter_folder(cfg: DictConfig, run: Run | None) -> Path:
    """The folder of the adapter that ``cfg.adapter`` names."""
    folder = cfg.adapter
    if folder == "latest":
        config = latest(Path(cfg.paths.outputs, "lora"), f"*/{ADAPTER_FOLDER}/{CONFIG_NAME}")
        if config is None:
            raise UserError(
                f"adapter=latest: expected an adapter in {cfg.paths.outputs}/lora, found none; "
                f"make one with: {program('train')} stage=lora"
            )
        folder = config.parent
        if run is not None and run.is_sweep:
            raise UserError(
                "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
                f"different ones: adapter={folder}"
            )
    path = Path(folder)
    if not (path / CONFIG_NAME).exists() and (path / ADAPTER_FOLDER).is_dir():
        path = path / ADAPTER_FOLDER
    if not (path / CONFIG_NAME).is_file():
        raise UserError(
            f"adapter={folder}: expected the folder of an adapter, with {CONFIG_NAME} in it, or of "
            "the run that left it, or latest"
        )
    return path


def current_base_path(cfg: DictConfig) -> Path:
    """The file of the current base of these images and this network: the default of base_ckpt."""
    return Path(cfg.paths.bases, f"{cfg.base_name}.ckpt")


# --- the adapter -----------------------------------------------------------------------------


def load_saved_adapter(cfg: DictConfig, net: nn.Module, base_sha256: str) -> None:
    """Put the adapter that ``cfg.adapter`` names, if any, on ``net``, which is this base.

    ``cfg`` is what :func:`resolve_and_load_base` returns.
    """
    if cfg.adapter is not None:
        with _adapter_errors():
            load_adapter(net, cfg.adapter, cfg.allow_other_base, base_sha256=base_sha256)


def repaired_classes(cfg: DictConfig, data: ImageDataModule) -> list[int]:
    """The classes of ``data`` that the adapter of ``cfg`` repairs; none without an adapter."""
    if cfg.adapter is None:
        return []
    with _adapter_errors():
        names = read_metadata(cfg.adapter).get("targets", [])
    return [number for number, name in enumerate(data.classes) if name in names]


def apply_scale(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, device: torch.device | str = "cpu"
) -> float:
    """Give the adapter on ``net`` the scale ``cfg.scale``; return it.

    For ``scale=auto`` the validation images of ``data`` decide; ``net`` is on ``device``.
    """
    scale: Any = cfg.scale
    if scale != "auto" and not is_number(scale):
        raise UserError(f"scale={scale}: expected a number, 1 as trained, or auto")
    if cfg.adapter is None:
        if scale not in (1, "auto"):
            raise UserError(f"scale={scale}: expected 1, since there is no adapter")
        return 1.0
    if scale == "auto":
        require_validation("scale=auto", data)
        batches = partial(data.batches, data.val_set, device, name="scale=auto")
        scale = approximate_dial(net, batches)["advised"]
        _info("scale=%g, as validation images advise", scale)
    set_lora_scale(net, scale)
    return float(scale)


def save_base(cfg: DictConfig, run: Run, net: nn.Module, data: ImageDataModule, path: Path) -> None:
    """Write the weights that ``net`` was trained to, and their :mod:`.record`, as a base."""
    record = make_record(cfg, str(data.name), data.preprocessing(), run.typed)
    # How many images are held out is each training's own choice.
    record["data"].pop("val_size", None)
    write_base(net.state_dict(), path, record)


def save_adapter_and_base(
    cfg: DictConfig,
    run: Run,
    net: nn.Module,
    base: Base,
    data: ImageDataModule,
    results: Mapping[str, Any],
) -> None:
    """Save the one adapter on ``net``, with its :mod:`.record`, in the run's folder.

    The base gets a file of its own, where it has none, so that it is found later.
    """
    bases = Path(cfg.paths.bases)
    record = make_record(cfg, str(data.name), data.preprocessing(), run.typed)
    if find_base(bases, base.sha256) is None:
        write_base(base.tensors, versioned_base_path(bases, cfg.base_name, base.sha256), record)
    names = [data.classes[target] for target in results["targets"]]
    metadata = {"base_sha256": base.sha256, "targets": names, **record}
    save_adapter(net, run.folder / ADAPTER_FOLDER, metadata=metadata)
