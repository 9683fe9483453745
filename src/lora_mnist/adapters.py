"""The base and the adapters that a command names, put on its network.

``adapter`` is null, a folder, ``latest``, a mapping of ``path`` and perhaps ``scale`` and ``name``,
or a list of those. A folder is an adapter's own, or that of the run that left it.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, open_dict
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
from lora_mnist.disk.latest import latest
from lora_mnist.disk.run_settings import (
    TRAINING_KEYS,
    RunSettings,
    foreign_code,
    read_run_settings,
)
from lora_mnist.errors import UserError, config_group, one_line, require_number
from lora_mnist.lora import (
    CONFIG_NAME,
    load_adapter,
    lora_adapters,
    lora_names,
    read_metadata,
    save_adapter,
    set_lora_scale,
    sum_adapters,
)
from lora_mnist.project import Run, program
from lora_mnist.show.changes import named
from lora_mnist.show.report import write_card

_info = rank_zero_only(logging.getLogger(__name__).info)

#: Where the first of several processes tells the others what ``adapter=latest`` is.
_LATEST = "LORA_MNIST_LATEST"


@dataclass
class Adapter:
    """An adapter to put on the network."""

    path: Path  # its folder
    scale: float = 1.0
    name: str = ""


def find_adapters(cfg: DictConfig) -> list[Adapter]:
    """The adapters that ``cfg.adapter`` names.

    One without a name is called after what it repairs, ``nines``, or else after its folder, or its
    run's folder; where that name is taken, ``nines2``.
    """
    given = cfg.get("adapter")
    adapters: list[Adapter] = []
    for each in given if isinstance(given, ListConfig) else [given]:
        if each is None:
            continue
        try:
            adapter = Adapter(**({"path": each} if isinstance(each, str) else each))
            adapter.path = Path(adapter.path)
            require_number("scale", adapter.scale, -1e6, 1e6)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"adapter={each}: expected a folder, latest, or a mapping of path, scale and name"
            ) from error
        if not adapter.path.is_dir():
            raise UserError(
                f"adapter={each}: there is no such folder; expected an adapter's folder, that of "
                "the run which left it, or latest"
            )
        folder = adapter.path
        if not (folder / CONFIG_NAME).exists() and (folder / "adapter").is_dir():
            adapter.path = folder / "adapter"
        elif folder.name == "adapter":
            folder = folder.parent
        with _adapter_errors():
            name = adapter.name or read_metadata(adapter.path).get("repairs") or folder.name
        adapter.name, number = name, 2
        while adapter.name in [other.name for other in adapters]:
            adapter.name, number = f"{name}{number}", number + 1
        adapters.append(adapter)
    return adapters


@contextmanager
def _adapter_errors() -> Iterator[None]:
    """Turn what is wrong with an adapter's files into a :class:`UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"adapter={one_line(error)}") from error


# --- what an adapter was trained with ------------------------------------------------------------


def as_trained(cfg: DictConfig, run: Run | None) -> DictConfig:
    """A copy of ``cfg`` with ``latest`` found, and network and images of the first adapter.

    The folder of the run that trained it holds them in ``.hydra/``. A ``net`` or ``data`` on the
    command line wins. From Python, without a command line, ``cfg`` is taken as it is. Keys of
    ``data`` that are null are read from the adapter's file, or else from that of a base of ours:
    how images are prepared, and the order of the classes.

    Raises:
        UserError: if there is no such adapter, or its run names code of somebody's own.
    """
    cfg = cfg.copy()
    if cfg.get("adapter") == "latest":
        cfg.adapter = _latest(cfg, run)
    adapters = find_adapters(cfg)
    if adapters:
        trained = read_run_settings(adapters[0].path.parent)
        if run is not None and run.typed and trained is not None:
            _take_over(cfg, run, trained)
    record = read_record(base_file(cfg, adapters)[0])
    preprocessing = record.preprocessing if record else {}
    with _adapter_errors():
        for adapter in adapters[:1]:
            preprocessing |= json.loads(read_metadata(adapter.path).get("preprocessing", "{}"))
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
    config = latest(Path(cfg.paths.outputs, "lora"), f"*/adapter/{CONFIG_NAME}")
    if config is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {cfg.paths.outputs}/lora, found none; "
            f"make one with: {program('train')} stage=lora"
        )
    folder = str(config.parents[1])
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
    typed = {text.split("=", 1)[0].lstrip("+~") for text in run.typed}
    with open_dict(cfg):
        # net.hidden_sizes=... means another network; data.mean=... still means the same images.
        if not any(key.partition(".")[0] == "net" for key in typed):
            foreign = foreign_code(trained.net)
            _require_trust(cfg, foreign)
            cfg.net, cfg.base_name = trained.net, trained.base_name
            if foreign:
                cfg.paths.here = str(trained.folder)
        if "data" not in typed:
            data = {k: value for k, value in trained.data.items() if k not in TRAINING_KEYS}
            foreign = foreign_code(data)
            _require_trust(cfg, foreign)
            if foreign:
                cfg.paths.here = str(trained.folder)
            folder = data.get("data_dir")
            if folder and not folder.startswith("$"):
                data["data_dir"] = str(trained.folder / Path(folder).expanduser())
            for key, value in cfg.data.items():
                if key in TRAINING_KEYS or f"data.{key}" in typed:
                    data[key] = value
            cfg.data = data


def _require_trust(cfg: DictConfig, foreign: list[str]) -> None:
    """Refuse code that only an adapter's run names: the run may be somebody else's."""
    if foreign and not cfg.trust:
        raise UserError(
            f"adapter={cfg.adapter}: its run names {foreign[0]}, which is code; expected "
            "trust=true to run it, or net=... and data=... on this command line, as in training"
        )


def adapter_targets(adapters: list[Adapter], classes: list[str]) -> list[int]:
    """The numbers of the classes that ``adapters`` repair; empty if one does not name them."""
    targets: list[int] = []
    for adapter in adapters:
        with _adapter_errors():
            names = json.loads(read_metadata(adapter.path).get("targets", "[]"))
        if not names or not set(names) <= set(classes):
            return []
        for name in names:
            if classes.index(name) not in targets:
                targets.append(classes.index(name))
    return targets


# --- on the network ------------------------------------------------------------------------------


def base_folder(cfg: DictConfig) -> Path:
    """Where every base keeps a file of its own."""
    return Path(cfg.paths.outputs, "base")


def current_base(cfg: DictConfig) -> Path:
    """The file of the current base of these images and this network: the default of base_ckpt."""
    return base_folder(cfg) / f"{cfg.base_name}.ckpt"


def base_file(cfg: DictConfig, adapters: list[Adapter]) -> tuple[Path, str | None]:
    """The file of the base, and the SHA-256 that it should have, where an adapter says it.

    The base is ``cfg.base_ckpt``; where that is null, or the default of training, the base that the
    first adapter was made for, found by its SHA-256, or else the current one.
    """
    path = Path(cfg.base_ckpt or current_base(cfg))
    is_given = cfg.base_ckpt is not None and not (cfg.stage == "lora" and path == current_base(cfg))
    if is_given or not adapters:
        return path, None
    with _adapter_errors():
        sha256 = read_metadata(adapters[0].path).get("base_sha256")
    kept = find_base(base_folder(cfg), sha256) if sha256 else None
    return kept or current_base(cfg), sha256


def load_base(cfg: DictConfig, net: nn.Module) -> Base:
    """Load the base into ``net``, in eval mode; return it, to compare with later."""
    net.eval()  # in train mode, batch normalisation would move its running statistics
    adapters = find_adapters(cfg)
    path, sha256 = base_file(cfg, adapters)
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
            f"adapter={adapters[0].path}: its base, {sha256[:12]}..., is not in "
            f"{base_folder(cfg)}; expected base_ckpt=FILE, the weights that it was trained on"
        )
    return base


def load_adapters(cfg: DictConfig, net: nn.Module) -> list[Adapter]:
    """Put the adapters that ``cfg.adapter`` names on ``net``; return them."""
    adapters = find_adapters(cfg)
    for adapter in adapters:
        with _adapter_errors():
            load_adapter(net, adapter.path, cfg.allow_other_base, adapter.name, adapter.scale)
    return adapters


def turn_adapters(
    cfg: DictConfig, net: nn.Module, adapters: list[Adapter], data: ImageDataModule
) -> None:
    """Turn the ``adapters`` on ``net`` up or down, as ``cfg.scale`` says.

    With ``scale=auto`` the validation images of ``data`` decide how far: for several adapters one
    after another, while those that come later are off.
    """
    scale = cfg.scale
    if scale != "auto" and type(scale) not in (int, float):
        raise UserError(f"scale={scale}: expected a number, 1 as trained, or auto")
    if not adapters and scale not in (1, "auto"):
        raise UserError(f"scale={scale}: expected 1, since there is no adapter")
    if adapters and scale == "auto":
        with config_group("data"):
            data.setup("validate")
        require_validation("scale=auto", data)
        for adapter in adapters:
            set_lora_scale(net, 0, adapter.name)
    for adapter in adapters:
        if scale == "auto":
            set_lora_scale(net, adapter.scale, adapter.name)
            batches = partial(data.batches, data.val_set, "cpu", name="scale=auto")
            advised = quick_dial(net, batches, name=adapter.name)["advised"]
            _info("scale=%g of %s, as validation images advise", advised, adapter.name)
            adapter.scale *= advised
        else:
            adapter.scale *= scale
        set_lora_scale(net, adapter.scale, adapter.name)


@rank_zero_only
def save_sum(
    cfg: DictConfig,
    run: Run,
    net: nn.Module,
    base: Base,
    data: ImageDataModule,
    results: Mapping[str, Any],
) -> None:
    """Save the exact sum of the adapters on ``net``, which stands on the base alone, and its card.

    ``net`` then carries the sum. Beside it stands what it repairs, and how its images were
    prepared. The base gets a file of its own, where it has none: whoever loads the adapter finds
    it.
    """
    if find_base(base_folder(cfg), base.sha256) is None:
        write_base(base.tensors, own_file(base_folder(cfg), cfg.base_name, base.sha256))
    if len(lora_names(net)) > 1 or any(each.scale != 1 for each in lora_adapters(net)):
        sum_adapters(net)
    targets = sorted({*results["targets"], *results["repaired_before"]})
    metadata = {
        "base_sha256": base.sha256,
        "dataset": str(data.name),
        "targets": json.dumps([data.classes[target] for target in targets]),
        "preprocessing": json.dumps(data.preprocessing()),
    }
    if targets:
        metadata["repairs"] = named(data.classes, targets)
    save_adapter(net, run.folder / "adapter", metadata=metadata)
    write_card(run, results)
