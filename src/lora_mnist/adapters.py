"""The base and the adapter that a command names, put on its network.

``adapter`` is null, a folder, or ``latest``. A folder is an adapter's own, or that of the run that
left it.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, open_dict
from torch import nn

from lora_mnist.checks import require_validation
from lora_mnist.classifier.dial import quick_dial
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.base import (
    Base,
    find_base,
    own_file,
    read_base,
    read_record,
    write_base,
)
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, latest
from lora_mnist.disk.run_settings import (
    TRAINING_KEYS,
    RunSettings,
    foreign_code,
    read_run_settings,
)
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.combine import sum_adapters
from lora_mnist.lora.model import lora_names, set_lora_scale
from lora_mnist.lora.peft import CONFIG_NAME, read_metadata
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.project import Run, program
from lora_mnist.show.report import write_card

_info = rank_zero_only(logging.getLogger(__name__).info)

#: Where the first of several processes tells the others what ``adapter=latest`` is.
_LATEST = "LORA_MNIST_LATEST"


@contextmanager
def _adapter_errors() -> Iterator[None]:
    """Turn what is wrong with an adapter's files into a :class:`UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"adapter={one_line(error)}") from error


# --- what an adapter was trained with ------------------------------------------------------------


def with_settings_of_adapter_or_base(cfg: DictConfig, run: Run | None) -> DictConfig:
    """A copy of ``cfg`` that inherits settings of its adapter's run, or of its base's file.

    ``adapter`` becomes the adapter's own folder. From a command line, ``net`` and ``data`` become
    those of the run that trained it (its ``.hydra/``); what was typed stays. A configuration made
    in Python is left as it is. Keys of ``data`` that are null come from the file of the adapter or,
    if it has none, of a base of ours: how images are prepared, and the order of the classes.

    Raises:
        UserError: if there is no such adapter, or its run or its file names code of somebody's own.
    """
    cfg = cfg.copy()
    adapter = cfg.get("adapter")
    if adapter == "latest":
        adapter = _latest(cfg, run)
    if adapter is not None:
        folder = Path(adapter)
        if not folder.is_dir():
            raise UserError(
                f"adapter={folder}: there is no such folder; expected an adapter's folder, that of "
                "the run which left it, or latest"
            )
        if not (folder / CONFIG_NAME).exists() and (folder / ADAPTER_FOLDER).is_dir():
            folder = folder / ADAPTER_FOLDER
        cfg.adapter = str(folder)
        trained = read_run_settings(folder.parent)
        if trained is not None and run is not None and run.typed:
            _take_over(cfg, run, trained)
    record = read_record(base_file(cfg)[0]) or {}
    preprocessing = record.get("preprocessing", {})
    if adapter is not None:
        with _adapter_errors():
            preprocessing |= read_metadata(cfg.adapter).get("preprocessing", {})
    if foreign := foreign_code(preprocessing):  # either file may be somebody else's
        named = f"base_ckpt={cfg.base_ckpt}" if adapter is None else f"adapter={cfg.adapter}"
        raise UserError(
            f"{named}: its preprocessing has {foreign[0]}, which is code; expected plain values"
        )
    if cfg.data.get("transform"):  # it replaces these keys
        preprocessing = {}
    for key, value in preprocessing.items():
        if key in cfg.data and cfg.data[key] is None:
            cfg.data[key] = value
    return cfg


def _latest(cfg: DictConfig, run: Run | None) -> str:
    """The folder of the newest run with an adapter."""
    if rank_zero_only.rank and _LATEST in os.environ:  # type: ignore[attr-defined]
        return os.environ[_LATEST]
    config = latest(Path(cfg.paths.outputs, "lora"), f"*/{ADAPTER_FOLDER}/{CONFIG_NAME}")
    if config is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {cfg.paths.outputs}/lora, found none; "
            f"make one with: {program('train')} stage=lora"
        )
    folder = str(config.parent)
    if run is not None and run.is_sweep:
        raise UserError(
            "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
            f"different ones: adapter={folder}"
        )
    if run is not None:  # a notebook starts no other processes, and keeps its environment
        os.environ[_LATEST] = folder
    return folder


def _take_over(cfg: DictConfig, run: Run, trained: RunSettings) -> None:
    """Give ``cfg`` the network and the images of a run, but for what was typed."""
    typed = run.typed_keys
    taken: dict[str, dict[str, Any]] = {}
    # net.hidden_sizes=... means another network; data.mean=... still means the same images.
    if not any(key.partition(".")[0] == "net" for key in typed):
        taken["net"] = trained.net
    if "data" not in typed:
        taken["data"] = {k: v for k, v in trained.data.items() if k not in TRAINING_KEYS}
    foreign = foreign_code(taken)
    if foreign and not cfg.trust:  # the run may be somebody else's
        raise UserError(
            f"adapter={cfg.adapter}: its run names {foreign[0]}, which is code; expected "
            "trust=true to run it, or net=... and data=... on this command line, as in training"
        )
    with open_dict(cfg):
        if foreign:
            cfg.paths.here = str(trained.folder)
        if "net" in taken:
            cfg.net, cfg.base_name = trained.net, trained.base_name
        if "data" in taken:
            data = taken["data"]
            folder = data.get("data_dir")
            if folder and not folder.startswith("$"):
                data["data_dir"] = str(trained.folder / Path(folder).expanduser())
            for key, value in cfg.data.items():
                if key in TRAINING_KEYS or f"data.{key}" in typed:
                    data[key] = value
            cfg.data = data


# --- on the network ------------------------------------------------------------------------------


def current_base(cfg: DictConfig) -> Path:
    """The file of the current base of these images and this network: the default of base_ckpt."""
    return Path(cfg.paths.bases, f"{cfg.base_name}.ckpt")


def base_file(cfg: DictConfig) -> tuple[Path, str | None]:
    """The file of the base, and the SHA-256 that it should have, where the adapter says it.

    The base is ``cfg.base_ckpt``; where that is null, or the default of training, the base that the
    adapter was made for, found by its SHA-256, or else the current one.
    """
    path = Path(cfg.base_ckpt or current_base(cfg))
    is_default = cfg.base_ckpt is None or (cfg.stage == "lora" and path == current_base(cfg))
    if not is_default or cfg.get("adapter") is None:
        return path, None
    with _adapter_errors():
        sha256 = read_metadata(cfg.adapter).get("base_sha256")
    kept = find_base(Path(cfg.paths.bases), sha256) if sha256 else None
    return kept or current_base(cfg), sha256


def load_base(cfg: DictConfig, net: nn.Module) -> Base:
    """Load the base into ``net``, in eval mode but not frozen; return it, to compare with later."""
    net.eval()  # in train mode, batch normalisation would move its running statistics
    path, sha256 = base_file(cfg)
    try:
        base = read_base(path, net)
    except FileNotFoundError as error:
        message = f"base_ckpt={path}: no such file; expected the weights of {cfg.net._target_}"
        if path == current_base(cfg):
            make = f"{program('train')} stage=pretrain"
            message += f": base_ckpt=FILE, or make them with {make} and the same data and net"
        raise UserError(message) from error
    except (ValueError, OSError) as error:
        raise UserError(f"base_ckpt={path}: {one_line(error)}") from error
    if sha256 and base.sha256 != sha256 and not cfg.allow_other_base:
        raise UserError(
            f"adapter={cfg.adapter}: its base, {sha256[:12]}..., is not in "
            f"{cfg.paths.bases}; expected base_ckpt=FILE, the weights that it was trained on"
        )
    return base


def load_saved_adapter(cfg: DictConfig, net: nn.Module) -> list[str]:
    """Put the adapter that ``cfg.adapter`` names, if any, on ``net``.

    Returns:
        The names of the classes that it repairs; empty if there is no adapter, or it names none.
    """
    if cfg.adapter is None:
        return []
    with _adapter_errors():
        load_adapter(net, cfg.adapter, cfg.allow_other_base)
        return list(read_metadata(cfg.adapter).get("targets", []))


def turn_adapter(
    cfg: DictConfig,
    net: nn.Module,
    data: ImageDataModule,
    device: torch.device | str = "cpu",
) -> float:
    """Turn the adapter on ``net`` up or down, as ``cfg.scale`` says; return its scale.

    With ``scale=auto`` the validation images of ``data`` decide how far; ``net`` is on ``device``.
    """
    scale: Any = cfg.scale
    if scale != "auto" and type(scale) not in (int, float):
        raise UserError(f"scale={scale}: expected a number, 1 as trained, or auto")
    if cfg.adapter is None:
        if scale not in (1, "auto"):
            raise UserError(f"scale={scale}: expected 1, since there is no adapter")
        return 1.0
    if scale == "auto":
        with config_group("data"):
            data.setup("validate")
        require_validation("scale=auto", data)
        batches = partial(data.batches, data.val_set, device, name="scale=auto")
        scale = quick_dial(net, batches)["advised"]
        _info("scale=%g, as validation images advise", scale)
    set_lora_scale(net, scale)
    return float(scale)


@rank_zero_only
def sum_and_save_adapter(
    cfg: DictConfig,
    run: Run,
    net: nn.Module,
    base: Base,
    data: ImageDataModule,
    results: Mapping[str, Any],
) -> None:
    """Save the exact sum of the adapters on ``net``, which needs the base alone, and its card.

    ``net`` then carries the sum. Its metadata name the classes that are repaired, and how images
    are prepared. The base gets a file of its own, where it has none, so that it is found later.
    """
    bases = Path(cfg.paths.bases)
    if find_base(bases, base.sha256) is None:
        write_base(base.tensors, own_file(bases, cfg.base_name, base.sha256))
    if len(lora_names(net)) > 1 or any(each.scale != 1 for each in lora_adapters(net)):
        sum_adapters(net)
    targets = sorted({*results["targets"], *results["repaired_before"]})
    metadata: dict[str, Any] = {
        "base_sha256": base.sha256,
        "dataset": str(data.name),
        "targets": [data.classes[target] for target in targets],
        "preprocessing": data.preprocessing(),
    }
    save_adapter(net, run.folder / ADAPTER_FOLDER, metadata=metadata)
    write_card(run, results)
