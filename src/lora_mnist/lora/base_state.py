"""The base of an adapted network: its tensors, their SHA-256, and how many numbers they hold."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .layer import LoRAParametrization

# Where an adapter's tensors stand in the state_dict of an adapted network.
_LORA_KEY = re.compile(r"(^|\.)parametrizations\.[^.]+\.\d+\.(lora|start)_[AB]$")


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The base is its parameters and its buffers. The tensors share memory with ``model``, as those of
    ``state_dict`` do. See also :func:`lora_state_dict`.
    """
    originals = {}
    for name, registered in model.named_modules(remove_duplicate=False):
        is_list = isinstance(registered, ParametrizationList)
        if is_list and isinstance(registered[0], LoRAParametrization):
            originals[f"{name}.original"] = name.replace("parametrizations.", "")
    return {
        originals.get(key, key): tensor
        for key, tensor in model.state_dict().items()
        if not _LORA_KEY.search(key)
    }


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of ``model.state_dict()`` that :func:`base_state_dict` leaves out."""
    state = model.state_dict()
    return {key: state[key] for key in state if _LORA_KEY.search(key)}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over name, dtype, shape and bytes of every tensor, by name.

    Raises:
        ValueError: if a tensor holds no numbers yet.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{name}: expected numbers, found a lazy tensor or the meta device")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit the same in both; missing ones included."""
    changed = []
    for name in sorted(before.keys() | after.keys()):
        prints = [fingerprint({name: s[name]}) if name in s else None for s in (before, after)]
        if prints[0] != prints[1]:
            changed.append(name)
    return changed


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """How many numbers the base holds, LoRA adds and training changes, and 100 * LoRA / base."""
    adapters = [m for m in model.modules() if isinstance(m, LoRAParametrization)]
    lora = sum(p.numel() for adapter in adapters for p in adapter.parameters())
    base = sum(p.numel() for p in model.parameters()) - lora
    return {
        "base": base,
        "lora": lora,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "increase_percent": round(100 * lora / base, 3),
    }


def trainable_parameters(model: nn.Module) -> str:
    """``parameters: 53 + 22 of LoRA = 75, increase 41.509%; trainable: 22``, in a line to print."""
    base, lora, trainable, increase = count_parameters(model).values()
    total = f"parameters: {base:,}"
    if lora:
        total += f" + {lora:,} of LoRA = {base + lora:,}, increase {increase:.3f}%"
    return f"{total}; trainable: {trainable:,}"
