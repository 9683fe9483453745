"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged: ``adapter_config.json`` and
``adapter_model.safetensors``, whose tensors are named ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), and ``...lora_B.weight``, shape (out_features, rank); those of other
layers have the shapes of :class:`.layer.LoRAParametrization`. The safetensors metadata also holds
``base_sha256``, the fingerprint of the base that the adapter was trained on, and whatever the
caller adds.
"""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..files import atomic_write
from .fingerprint import fingerprint
from .frozen import moved_tensors
from .layer import LoRAParametrization
from .model import attach, lora_names, lora_weights, named_adapters
from .peft_format import CONFIG_NAME, check_targets, layer_settings, read_config, write_config
from .settings import LayerSettings, is_number
from .state import base_state_dict
from .targets import listed
from .variants import PiSSAParametrization
from .weight import Weight, adaptable_weights

log = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(rf"{re.escape(_PREFIX)}(.*)\.lora_[AB]\.weight")
_LONGEST_HEADER = 16 * 2**20
_LONGEST_MESSAGE = 500


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    An adapter that started as PiSSA is written as the plain LoRA that it amounts to, of twice the
    rank: ``[lora_B, -start_B] @ [lora_A; start_A]``, which PEFT's conversion gives too. So it fits
    the original base, here and in PEFT.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be; an adapter already in it is replaced.
        name: which adapter, where ``model`` carries several.
        metadata: more for the file's metadata, beside ``base_sha256``.

    Returns:
        ``folder``.

    Raises:
        ValueError: if no layer carries LoRA, no adapter has this name, there are several and none
            was named, or the base moved since it was given its adapter: nobody could load that.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    adapters = _one_adapter(model, name)
    if moved := moved_tensors(model):
        raise ValueError(
            f"the base changed under its adapter: {listed(moved, most=3)}; expected it as it was "
            "at add_lora (freeze_base(model) makes this the base)"
        )
    tensors, settings = {}, {}
    for layer, adapter in adapters.items():
        lora_A, lora_B, settings[layer] = _plain_lora(adapter)
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = lora_B.detach().cpu().contiguous()
    described = {
        "format": "pt",
        "base_sha256": fingerprint(base_state_dict(model)),
        **(metadata or {}),
    }
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(_in_order(save(tensors, described)))
    with atomic_write(folder / CONFIG_NAME) as path:
        write_config(path, model, settings, next(iter(adapters.values())).dropout)
    return folder


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors writes it in random order.

    The file begins with the length of its header, eight bytes, and the header, which is JSON.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return file[:8] + text.ljust(end - 8) + file[end:]


def _one_adapter(model: nn.Module, name: str | None) -> dict[str, LoRAParametrization]:
    """The layers' parts of the adapter ``name``, or of the only one."""
    named_adapters(model, name)
    names = lora_names(model)
    if name is None and len(names) > 1:
        raise ValueError(f"the model carries {len(names)} adapters; expected one, or its name")
    return {
        key: adapter
        for key, weight in lora_weights(model).items()
        for adapter in weight.adapters
        if adapter.name == (name or names[0])
    }


def _plain_lora(adapter: LoRAParametrization) -> tuple[Tensor, Tensor, LayerSettings]:
    """``lora_A``, ``lora_B``, rank and scaling without any start to subtract."""
    lora_A: Tensor = adapter.lora_A
    lora_B: Tensor = adapter.lora_B
    rank, alpha, use_rslora = adapter.rank, adapter.alpha, adapter.use_rslora
    if isinstance(adapter, PiSSAParametrization):
        # Twice the rank at the same scaling.
        rank, alpha = 2 * rank, alpha * (math.sqrt(2) if use_rslora else 2)
        lora_A = torch.cat([lora_A, adapter.start_A])
        lora_B = torch.cat([lora_B, -adapter.start_B], dim=1)
    return lora_A, lora_B, LayerSettings(rank, alpha, use_rslora=use_rslora)


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    allow_other_base: bool = False,
    name: str | None = None,
    weight: float = 1.0,
) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    The folder may come from a stranger: no code in it runs, and no expression or size in it can
    keep the loader busy.

    Args:
        model: the base; changed in place, its own parameters frozen. On a model that carries LoRA
            already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        allow_other_base: accept a base with another fingerprint, as long as the shapes fit.
        name: tells the adapter from others on ``model``; see :func:`.model.add_lora`.
        weight: how much of the adapter to apply, any finite number: ``lora_B`` is multiplied by it.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if ``weight`` or ``name`` cannot be used, or the files are missing or damaged,
            ask for what LoRA here does not do, do not fit the layers of ``model``, or were made for
            another base. ``model`` is then as it was.
    """
    folder = Path(folder)
    try:
        if not is_number(weight):
            raise ValueError(f"weight={weight}: expected a finite number")
        config = read_config(folder / CONFIG_NAME)
        weights = adaptable_weights(model)
        with _opened(folder) as file:
            settings = _settings(config, file, weights)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        _check_numbers(tensors, weights)
        _check_base(model, metadata, allow_other_base)
        attach(model, settings, name)
    except ValueError as error:
        raise ValueError(f"{folder}: {_shown(error)}") from error
    with torch.no_grad():
        for layer in settings:
            adapter = weights[layer].adapters[-1]
            adapter.lora_A.copy_(tensors[f"{_PREFIX}{layer}.lora_A.weight"])
            adapter.lora_B.copy_(tensors[f"{_PREFIX}{layer}.lora_B.weight"]).mul_(weight)
    return model


def read_base_sha256(folder: str | Path) -> str | None:
    """The fingerprint of the base that the adapter in ``folder`` was made for; no tensor is read.

    Returns:
        64 hexadecimal digits, or ``None`` where the adapter does not say, as PEFT's do not.

    Raises:
        ValueError: if the folder holds no readable adapter, or what it says is no SHA-256.
    """
    try:
        with _opened(Path(folder)) as file:
            sha256: str | None = (file.metadata() or {}).get("base_sha256")
        if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"base_sha256={sha256}: expected 64 hexadecimal digits")
    except ValueError as error:
        raise ValueError(f"{folder}: {_shown(error)}") from error
    return sha256


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    """The tensors of ``folder``, not yet read.

    Raises:
        ValueError: if the file cannot be opened, or what is read from it is damaged.
    """
    path = folder / WEIGHTS_NAME
    if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
        raise ValueError(
            f"{pickled.name} is a pickle, which can run code when it is loaded; expected "
            f"{WEIGHTS_NAME}, which PEFT writes with safe_serialization=True"
        )
    try:
        if not path.is_file():
            raise OSError("no such file")
        with path.open("rb") as start:
            if int.from_bytes(start.read(8), "little") > _LONGEST_HEADER:
                raise OSError("its header is too long")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error


def _settings(
    config: Mapping[str, Any], file: Any, weights: Mapping[str, Weight]
) -> dict[str, LayerSettings]:
    """How each layer is adapted, once every tensor was found to be expected, and of its shape."""
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    matches = {key: _KEY.fullmatch(key) for key in shapes}
    if foreign := [key for key, match in matches.items() if not match]:
        raise ValueError(f"unexpected tensor {foreign[0]} in {WEIGHTS_NAME}")
    stored = dict.fromkeys(match[1] for match in matches.values() if match)
    if not stored:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    if unknown := [name for name in stored if name not in weights]:
        raise ValueError(f"{unknown[0]} is no layer of the model that can be adapted")
    check_targets(config, stored, weights)
    ranks = {}
    for name in stored:
        rank_or_none = None if config.get("rank_pattern") else config["r"]
        ranks[name] = _checked_rank(name, rank_or_none, weights[name].base, shapes)
    return layer_settings(config, ranks)


def _checked_rank(
    name: str, rank: int | None, weight: Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """The rank of both tensors of the layer ``name``, which is ``rank`` unless that is ``None``."""
    keys = [f"{_PREFIX}{name}.{side}.weight" for side in ("lora_A", "lora_B")]
    if missing := [key for key in keys if key not in shapes]:
        raise ValueError(f"tensor {missing[0]} is missing from {WEIGHTS_NAME}")
    if rank is None:
        rank = next(iter(shapes[keys[0]]), 0)
    ones = [1] * (weight.ndim - 2)
    expected = ((rank, *weight.shape[1:]), (len(weight), rank, *ones))
    for key, shape in zip(keys, expected, strict=True):
        if shapes[key] != shape:
            raise ValueError(f"tensor {key} has shape {shapes[key]}, expected {shape}")
    return rank


def _check_numbers(tensors: Mapping[str, Tensor], weights: Mapping[str, Weight]) -> None:
    for key, tensor in tensors.items():
        dtype = weights[_KEY.fullmatch(key)[1]].base.dtype  # type: ignore[index]
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {key} holds {tensor.dtype}, expected floating-point numbers")
        if not torch.isfinite(tensor.to(dtype)).all():
            raise ValueError(f"tensor {key} holds NaN or infinity")


def _check_base(model: nn.Module, metadata: Mapping[str, str], allow_other_base: bool) -> None:
    made_for = metadata.get("base_sha256")
    if made_for is None:
        log.warning("the adapter does not say which base it was made for: not checked")
    elif not allow_other_base and made_for != (here := fingerprint(base_state_dict(model))):
        dataset = f" on {metadata['dataset']}" if "dataset" in metadata else ""
        raise ValueError(
            f"made for the base {made_for}{dataset}, this one is {here}; "
            "expected the same base, or allow_other_base=true"
        )


def _shown(error: ValueError) -> str:
    """The message on one line of bearable length, without what would move a terminal's cursor."""
    text = str(error)
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[: _LONGEST_MESSAGE - 200]} ... {text[-200:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
