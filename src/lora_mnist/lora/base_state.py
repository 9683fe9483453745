"""The base of an adapted network: its tensors, their SHA-256, and how many numbers they hold.

To name them, what :mod:`.merge` has merged has to be undone on a copy; so the undoing stands here.
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .layer import AdapterParametrization, LoRAParametrization
from .weight import adaptable_weights, lora_adapters


class Merged(NamedTuple):
    """What :func:`.merge.merge_lora` keeps of a network, to undo it: its ``lora_merged``."""

    names: list[str]  # of the merged adapters
    registered: dict[str, Any]  # each weight as it was, with all its adapters, by its name
    frozen: dict[str, Any]  # what kept the base in eval mode; empty if other adapters still need it


def merged_names(model: nn.Module) -> list[str]:
    """The adapters that are merged into ``model``."""
    merged: Merged | None = getattr(model, "lora_merged", None)
    return merged.names if merged else []


def undo_merge(model: nn.Module) -> None:
    """Make base and adapters of ``model`` what they were; what was put on meanwhile stays."""
    merged: Merged = model.lora_merged  # type: ignore[assignment]
    weights = adaptable_weights(model)
    for name, registered in merged.registered.items():
        weight = weights[name]
        registered.to(weight.base.device)
        later = [adapter for adapter in weight.adapters if adapter not in list(registered)]
        weight.put(registered.original, [*registered, *later])
    for adapter in lora_adapters(model):
        adapter.train(model.training)
    for part, frozen in merged.frozen.items():
        frozen.attach(model.get_submodule(part))
    del model.lora_merged


def unmerged(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it in which nothing is merged."""
    if merged_names(model):
        model = copy.deepcopy(model)
        undo_merge(model)
    return model


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The base is its parameters and its buffers. Its tensors share memory with ``model``, unless some
    adapters are merged and others not. With all of them merged, the network is a base of its own.
    """
    if lora_adapters(model):
        model = unmerged(model)
    adapters = lora_state_dict(model)
    adapted = {key.rsplit(".", 2)[0] for key in adapters}
    state = {}
    for key, tensor in model.state_dict().items():
        if key.removesuffix(".original") in adapted:
            key = key.removesuffix(".original").replace("parametrizations.", "")
        if key not in adapters:
            state[key] = tensor
    return state


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of ``model.state_dict()`` that :func:`base_state_dict` leaves out."""
    modules = model.named_modules(remove_duplicate=False)
    adapters = tuple(f"{name}." for name, m in modules if isinstance(m, AdapterParametrization))
    return {key: t for key, t in model.state_dict().items() if key.startswith(adapters)}


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


def fingerprints(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The :func:`fingerprint` of each tensor by itself."""
    return {name: fingerprint({name: tensor}) for name, tensor in state.items()}


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit the same in both; missing ones included."""
    differences = fingerprints(before).items() ^ fingerprints(after).items()
    return sorted({name for name, _ in differences})


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """How many numbers the base holds, LoRA adds and training changes, and 100 * LoRA / base."""
    lora = sum(p.numel() for adapter in lora_adapters(model) for p in adapter.parameters())
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
        is_lora = any(isinstance(a, LoRAParametrization) for a in lora_adapters(model))
        what = "LoRA" if is_lora else "the adapter"
        total += f" + {lora:,} of {what} = {base + lora:,}, increase {increase:.3f}%"
    return f"{total}; trainable: {trainable:,}"
