"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged: ``adapter_config.json`` and
``adapter_model.safetensors``, whose tensors are named ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), and ``...lora_B.weight``, shape (out_features, rank); those of
convolutions have the shapes of :mod:`lora_mnist.parametrization`. The safetensors metadata also
holds ``base_sha256``, the fingerprint of the base that the adapter was trained on, and in a run's
adapter the name of the ``dataset``.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lora_mnist.files import atomic_write
from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    base_weight,
    lora_adapters,
    lora_layers,
    lora_names,
)
from lora_mnist.parametrization import Layer, LoRAParametrization
from lora_mnist.peft_config import (
    CONFIG_NAME,
    LayerSettings,
    layer_settings,
    read_config,
    targeted_modules,
    write_config,
)

log = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over name, dtype, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_raw_bytes(tensor).numpy().data)
    return digest.hexdigest()


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit the same in both; missing ones included."""
    return [
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or not _same_bits(before[name], after[name])
    ]


def _same_bits(first: Tensor, second: Tensor) -> bool:
    same_form = first.dtype == second.dtype and first.shape == second.shape
    return same_form and torch.equal(_raw_bytes(first), _raw_bytes(second))


def _raw_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


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
        model: network whose layers carry LoRA (see :func:`lora_mnist.add_lora`).
        folder: made if need be; an adapter already in it is replaced.
        name: which adapter, where ``model`` carries several.
        metadata: more for the file's metadata, beside ``base_sha256``.

    Returns:
        ``folder``.

    Raises:
        ValueError: if no layer carries LoRA, no adapter has this name, or there are several and
            none was named.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    adapters = _one_adapter(model, name)
    first = next(iter(adapters.values()))
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
        write_config(path, model, settings, first.use_rslora, first.dropout)
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
    names = lora_names(model)
    if not names:
        raise ValueError("no layer of the model carries LoRA")
    if name is None and len(names) > 1:
        raise ValueError(f"the model carries {len(names)} adapters; expected one, or its name")
    if name is not None and name not in names:
        raise ValueError(f"name={name}: expected one of {', '.join(names)}")
    return {
        key: adapter
        for key, layer in lora_layers(model)
        for adapter in lora_adapters(layer)
        if adapter.name == (name or names[0])
    }


def _plain_lora(adapter: LoRAParametrization) -> tuple[Tensor, Tensor, LayerSettings]:
    """``lora_A``, ``lora_B``, rank and alpha without any start to subtract."""
    if adapter.start_A is None or adapter.start_B is None:
        return adapter.lora_A, adapter.lora_B, LayerSettings(adapter.rank, adapter.alpha)
    # Twice the rank at the same scaling.
    alpha = adapter.alpha * (math.sqrt(2) if adapter.use_rslora else 2)
    return (
        torch.cat([adapter.lora_A, adapter.start_A]),
        torch.cat([adapter.lora_B, -adapter.start_B], dim=1),
        LayerSettings(2 * adapter.rank, alpha),
    )


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    allow_other_base: bool = False,
    name: str | None = None,
    weight: float = 1.0,
) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    Args:
        model: the base; changed in place, its own parameters frozen. On a model that carries LoRA
            already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        allow_other_base: accept a base with another fingerprint, as long as the shapes fit.
        name: tells the adapter from others on ``model``; see :func:`lora_mnist.add_lora`.
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
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise ValueError(f"weight={weight}: expected a finite number")
        config = read_config(folder / CONFIG_NAME)
        tensors, metadata = _read_weights(folder / WEIGHTS_NAME)
        settings = _checked_settings(config, tensors, model)
        _check_base(model, metadata, allow_other_base)
        exactly = {layer: f"^{re.escape(layer)}" for layer in settings}
        add_lora(
            model,
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets="|".join(re.escape(layer) for layer in settings),
            use_rslora=bool(config.get("use_rslora")),
            rank_pattern={exactly[layer]: of.rank for layer, of in settings.items()},
            alpha_pattern={exactly[layer]: of.alpha for layer, of in settings.items()},
            name=name,
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    with torch.no_grad():
        for key, layer in lora_layers(model):
            if key in settings:
                adapter = lora_adapters(layer)[-1]
                adapter.lora_A.copy_(tensors[f"{_PREFIX}{key}.lora_A.weight"])
                adapter.lora_B.copy_(tensors[f"{_PREFIX}{key}.lora_B.weight"]).mul_(weight)
    return model


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


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
        raise ValueError(
            f"{pickled.name} is a pickle, which can run code when it is loaded; expected "
            f"{WEIGHTS_NAME}, which PEFT writes with safe_serialization=True"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error


def _checked_settings(
    config: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module
) -> dict[str, LayerSettings]:
    """Rank and alpha by layer, once every tensor was found to be expected, there, and sound."""
    shape = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_[AB]\.weight")
    matches = {key: shape.fullmatch(key) for key in tensors}
    if foreign := [key for key, match in matches.items() if not match]:
        raise ValueError(f"unexpected tensor {foreign[0]} in {WEIGHTS_NAME}")
    stored = dict.fromkeys(match[1] for match in matches.values() if match)
    if not stored:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    targeted = targeted_modules(config, model)
    layers = dict(model.named_modules())
    settings = {}
    for name in [*stored, *sorted(targeted - stored.keys())]:
        layer = layers.get(name)
        if not isinstance(layer, Layer):
            raise ValueError(f"{name} is no linear or conv2d layer of the model")
        if name not in targeted:
            chosen = config["target_modules"]
            raise ValueError(f"unexpected tensors of {name}, which target_modules={chosen} omits")
        settings[name] = layer_settings(config, name)
        _check_tensors(name, settings[name].rank, layer, tensors)
    return settings


def _check_tensors(name: str, rank: int, layer: Layer, tensors: dict[str, Tensor]) -> None:
    weight = base_weight(layer)
    ones = [1] * (weight.ndim - 2)
    expected = {"lora_A": (rank, *weight.shape[1:]), "lora_B": (len(weight), rank, *ones)}
    for side, shape in expected.items():
        key = f"{_PREFIX}{name}.{side}.weight"
        if key not in tensors:
            raise ValueError(f"tensor {key} is missing from {WEIGHTS_NAME}")
        tensor = tensors[key]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"tensor {key} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {key} holds {tensor.dtype}, expected floating-point numbers")
        if not torch.isfinite(tensor.to(weight.dtype)).all():
            raise ValueError(f"tensor {key} holds NaN or infinity")
