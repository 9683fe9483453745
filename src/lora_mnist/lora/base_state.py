"""The base of an adapted network: its tensors, their SHA-256, and counts of parameters."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Adapter, LoRAParametrization
from .weight import adapted_weights, lora_adapters


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the ``state_dict`` that ``model`` had before LoRA, sharing memory with ``model``."""
    names = _adapter_names(model)
    adapted = {name.rsplit(".", 2)[0] for name in names}  # layer.parametrizations.weight
    state = {}
    for key, tensor in model.state_dict().items():
        if key.startswith(names):
            continue
        if key.removesuffix(".original") in adapted:
            key = key.removesuffix(".original").replace("parametrizations.", "")
        state[key] = tensor
    return state


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the adapters, under their names in ``model.state_dict()``."""
    names = _adapter_names(model)
    return {key: t for key, t in model.state_dict().items() if key.startswith(names)}


def _adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of the adapters' tensors."""
    modules = model.named_modules(remove_duplicate=False)
    return tuple(f"{name}." for name, module in modules if isinstance(module, Adapter))


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_tensor_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _tensor_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, in the order of its elements, on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that differ in a bit, or are missing on one side."""
    changed = before.keys() ^ after.keys()
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        is_alike = (old.dtype, old.shape) == (new.dtype, new.shape)
        if not (is_alike and torch.equal(_tensor_bytes(old), _tensor_bytes(new))):
            changed.add(name)
    return sorted(changed)


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Count the parameters of the base and of LoRA, the saved and the trainable ones."""
    lora = sum(p.numel() for adapter in lora_adapters(model) for p in adapter.parameters())
    base = sum(p.numel() for p in model.parameters()) - lora
    saved = 0  # with PiSSA's start
    for weight in adapted_weights(model).values():
        for adapter in weight.adapters:
            if isinstance(adapter, LoRAParametrization):
                saved += sum(t.numel() for t in adapter.peft_tensors(weight.original, 1.0).values())
    return {
        "base": base,
        "lora": lora,
        "saved": saved,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "increase_percent": round(100 * lora / base, 3),
    }
