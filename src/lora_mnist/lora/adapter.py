"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged: ``adapter_config.json`` and
``adapter_model.safetensors``, whose tensors are named ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), and ``...lora_B.weight``, shape (out_features, rank); those of other
layers have the shapes of :class:`.layer.LoRAParametrization`. The safetensors metadata also holds
``base_sha256``, the fingerprint of the base that the adapter was trained on, and whatever the
caller adds.
"""

import logging
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..disk.files import atomic_write
from .base_state import fingerprint
from .frozen import moved_tensors
from .layer import LoRAParametrization
from .model import attach, lora_names, lora_weights, named_adapters
from .peft import (
    CONFIG_NAME,
    check_targets,
    layer_settings,
    read_config,
    warn_of_peft,
    write_config,
)
from .peft_layout import Place, place_of, places_in
from .settings import LayerSettings, is_number
from .state import base_state_dict
from .targets import answers, listed
from .tensor_file import WEIGHTS_NAME, opened, packed
from .variants import PiSSAParametrization
from .weight import Weight, adaptable_weights

log = logging.getLogger(__name__)

_LONGEST_MESSAGE = 500
#: For the file's header, and for ranks beyond the full one, which are as good as none.
_MORE_BYTES = 64 * 2**20


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
    weights = {layer: w for layer, w in lora_weights(model).items() if layer in adapters}
    tensors, settings = {}, {}
    for layer, adapter in adapters.items():
        lora_A, lora_B, settings[layer] = _plain_lora(adapter)
        place = place_of(layer, weights[layer])
        tensors[place.lora_A] = place.turned(lora_A).detach().cpu().contiguous()
        tensors[place.lora_B] = place.turned(lora_B).detach().cpu().contiguous()
    described = {
        "format": "pt",
        "base_sha256": fingerprint(base_state_dict(model)),
        **(metadata or {}),
    }
    dropout = max(adapter.dropout for adapter in adapters.values())
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(packed(tensors, described))
    with atomic_write(folder / CONFIG_NAME) as path:
        write_config(path, model, _of_one_scaling(settings), dropout)
    warn_of_peft(weights)
    return folder


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


def _of_one_scaling(settings: dict[str, LayerSettings]) -> dict[str, LayerSettings]:
    """The same scalings, all by ``use_rslora`` or none, as PEFT's configuration has it."""
    if len({of.use_rslora for of in settings.values()}) == 1:
        return settings
    return {name: LayerSettings(of.rank, of.scaling * of.rank) for name, of in settings.items()}


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
        with opened(folder, _most_bytes(weights)) as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            places = places_in(shapes, weights)
            _check_keys(shapes, places)
            check_targets(config, places, answers(weights, model))
            ranks = {
                layer: _checked_rank(config, place, weights[layer].base, shapes)
                for layer, place in places.items()
            }
            settings = layer_settings(config, ranks)
            factors = {layer: _read(file, places[layer], weights[layer]) for layer in places}
            metadata = file.metadata() or {}
        _check_base(model, metadata, allow_other_base)
        attach(model, settings, name)
    except ValueError as error:
        raise ValueError(f"{folder}: {_shown(error)}") from error
    with torch.no_grad():
        for layer, (lora_A, lora_B) in factors.items():
            adapter = weights[layer].adapters[-1]
            adapter.lora_A.copy_(lora_A)
            adapter.lora_B.copy_(lora_B).mul_(weight)
    return model


def _most_bytes(weights: Mapping[str, Weight]) -> int:
    """Of an adapter's file: at twice the full rank, as PiSSA's may be, in double precision.

    Below that ``lora_A`` and ``lora_B`` together have at most four times a weight's numbers.
    """
    return _MORE_BYTES + 4 * 8 * sum(weight.base.numel() for weight in weights.values())


def read_base_sha256(folder: str | Path) -> str | None:
    """The fingerprint of the base that the adapter in ``folder`` was made for; no tensor is read.

    Returns:
        64 hexadecimal digits, or ``None`` where the adapter does not say, as PEFT's do not.

    Raises:
        ValueError: if the folder holds no readable adapter, or what it says is no SHA-256.
    """
    try:
        with opened(Path(folder)) as file:
            sha256: str | None = (file.metadata() or {}).get("base_sha256")
        if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"base_sha256={sha256}: expected 64 hexadecimal digits")
    except ValueError as error:
        raise ValueError(f"{folder}: {_shown(error)}") from error
    return sha256


def _check_keys(keys: Collection[str], places: Mapping[str, Place]) -> None:
    if not keys:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    expected = [key for place in places.values() for key in (place.lora_A, place.lora_B)]
    known = set(expected)
    if foreign := [key for key in keys if key not in known]:
        raise ValueError(
            f"unexpected tensor {foreign[0]} in {WEIGHTS_NAME}: the model has no such layer that "
            "can be adapted"
        )
    if missing := [key for key in expected if key not in keys]:
        raise ValueError(f"tensor {missing[0]} is missing from {WEIGHTS_NAME}")


def _checked_rank(
    config: Mapping[str, Any],
    place: Place,
    weight: Tensor,
    shapes: Mapping[str, tuple[int, ...]],
) -> int:
    """The rank of both factors of one weight, once they were found to have fitting shapes."""
    side = -1 if place.transposed else 0
    rank: int = config["r"]
    if config.get("rank_pattern"):
        rank = shapes[place.lora_A][side] if shapes[place.lora_A] else 0
    lora_A = (rank, *weight.shape[1:])
    lora_B = (len(weight), rank, *[1] * (weight.ndim - 2))
    for key, expected in ((place.lora_A, lora_A), (place.lora_B, lora_B)):
        shape = expected[::-1] if place.transposed else expected
        if shapes[key] != shape:
            raise ValueError(f"tensor {key} has shape {shapes[key]}, expected {shape}")
    return rank


def _read(file: Any, place: Place, weight: Weight) -> tuple[Tensor, Tensor]:
    """``lora_A`` and ``lora_B``, once every number in them was found to be one."""
    factors = []
    for key in (place.lora_A, place.lora_B):
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {key} holds {tensor.dtype}, expected floating-point numbers")
        if not torch.isfinite(tensor.to(weight.base.dtype)).all():
            raise ValueError(f"tensor {key} holds NaN or infinity")
        factors.append(place.turned(tensor))
    return factors[0], factors[1]


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
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[: _LONGEST_MESSAGE - 200]} ... {text[-200:]}"
    return text
