"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged: ``adapter_config.json`` and
``adapter_model.safetensors``, whose tensors are named ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), and ``...lora_B.weight``, shape (out_features, rank). The safetensors
metadata also holds ``base_sha256``, the fingerprint of the base that the adapter was trained on.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_mnist.files import atomic_write
from lora_mnist.lora import (
    LoRAParametrization,
    add_lora,
    base_state_dict,
    lora_adapters,
    lora_layers,
)

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_PREFIX = "base_model.model."

# What PEFT's LoRA can do beyond the equation in lora.py, with the value that means "not used".
_UNSUPPORTED = {
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}


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


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    Args:
        model: network whose layers carry one adapter each (see :func:`lora_mnist.add_lora`), all
            of one rank and alpha.
        folder: made if need be; an adapter already in it is replaced.

    Returns:
        ``folder``.

    Raises:
        ValueError: if no layer carries LoRA, a layer carries several adapters, or they differ in
            rank or alpha.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    adapters = _single_adapters(model)
    shapes = {(adapter.rank, adapter.alpha) for adapter in adapters.values()}
    if len(shapes) != 1:
        raise ValueError(f"the layers differ in (rank, alpha): {sorted(shapes)}")
    ((rank, alpha),) = shapes
    tensors = {}
    for name, adapter in adapters.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = adapter.lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = adapter.lora_B.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(adapters),
        "bias": "none",
    }
    metadata = {"format": "pt", "base_sha256": fingerprint(base_state_dict(model))}
    with atomic_write(folder / WEIGHTS_NAME) as path:
        save_file(tensors, path, metadata)
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _single_adapters(model: nn.Module) -> dict[str, LoRAParametrization]:
    stacks = {name: lora_adapters(layer) for name, layer in lora_layers(model)}
    if not stacks:
        raise ValueError("no layer of the model carries LoRA")
    for name, stack in stacks.items():
        if len(stack) > 1:
            raise ValueError(f"{name} carries {len(stack)} adapters; expected one")
    return {name: stack[0] for name, stack in stacks.items()}


def load_adapter(model: nn.Module, folder: str | Path, allow_other_base: bool = False) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    Args:
        model: the base; changed in place, its own parameters frozen. On a model that carries LoRA
            already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        allow_other_base: accept a base with another fingerprint, as long as the shapes fit.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if the files are missing or damaged, ask for what LoRA here does not do, do not
            fit the layers of ``model``, or were made for another base. ``model`` is then as it was.
    """
    folder = Path(folder)
    try:
        config = _read_config(folder / CONFIG_NAME)
        tensors, base_sha256 = _read_weights(folder / WEIGHTS_NAME)
        names = _checked_names(config, tensors, model)
        here = fingerprint(base_state_dict(model))
        if base_sha256 not in (None, here) and not allow_other_base:
            raise ValueError(
                f"made for the base {base_sha256}, this one is {here}; "
                "expected the same base, or allow_other_base=true"
            )
        targets = "|".join(re.escape(name) for name in names)
        add_lora(model, rank=config["r"], alpha=config["lora_alpha"], targets=targets)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    with torch.no_grad():
        for name, layer in lora_layers(model):
            if name not in names:
                continue
            adapter = lora_adapters(layer)[-1]
            adapter.lora_A.copy_(tensors[f"{_PREFIX}{name}.lora_A.weight"])
            adapter.lora_B.copy_(tensors[f"{_PREFIX}{name}.lora_B.weight"])
    return model


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a readable {CONFIG_NAME} in it ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"expected peft_type LORA in {CONFIG_NAME}")
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"expected the key {key} in {CONFIG_NAME}")
    for key, unused in _UNSUPPORTED.items():
        if config.get(key) and config[key] != unused:
            raise ValueError(f"{key}={config[key]} is not supported; expected {unused}")
    return config


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get("base_sha256")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error


def _checked_names(
    config: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module
) -> list[str]:
    """Names of the layers that ``tensors`` adapt, once every tensor was found to fit its layer."""
    shape = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_[AB]\.weight")
    matches = {key: shape.fullmatch(key) for key in tensors}
    if foreign := [key for key, match in matches.items() if not match]:
        raise ValueError(f"unexpected tensor {foreign[0]} in {WEIGHTS_NAME}")
    names = list(dict.fromkeys(match[1] for match in matches.values() if match))
    if not names:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    layers = dict(model.named_modules())
    for name in names:
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is no linear layer of the model")
        for side, expected in {
            "lora_A": (config["r"], layer.in_features),
            "lora_B": (layer.out_features, config["r"]),
        }.items():
            _check_tensor(f"{_PREFIX}{name}.{side}.weight", expected, tensors)
    return names


def _check_tensor(key: str, expected: tuple[int, int], tensors: dict[str, Tensor]) -> None:
    if key not in tensors:
        raise ValueError(f"tensor {key} is missing from {WEIGHTS_NAME}")
    if tuple(tensors[key].shape) != expected:
        found = tuple(tensors[key].shape)
        raise ValueError(f"tensor {key} has shape {found}, expected {expected}")
    if not torch.isfinite(tensors[key]).all():
        raise ValueError(f"tensor {key} holds NaN or infinity")
