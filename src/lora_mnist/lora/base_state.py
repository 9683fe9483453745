"""The base of an adapted network: its tensors, their SHA-256, and how many numbers they hold."""

import copy
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .layer import AdapterParametrization, LoRAParametrization

# Where an adapter's tensors stand in the state_dict of an adapted network.
_LORA_KEY = re.compile(r"(^|\.)parametrizations\.[^.]+\.\d+\.((lora|start)_[AB]|magnitude|delta)$")


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The base is its parameters and its buffers. The tensors share memory with ``model``, as those of
    ``state_dict`` do. A weight into which some adapters are merged is there as it was before; a
    network that carries no adapter beside those is a base of its own. See also
    :func:`lora_state_dict`.
    """
    state = unadapted_state(model)
    for name, part in model.named_modules():
        if (merged := merged_in(part)) and any(map(_is_lora, part.modules())):
            merged.take_out(state, f"{name}." if name else "")
    return state


def unadapted_state(model: nn.Module) -> dict[str, Tensor]:
    """As :func:`base_state_dict`, but what is merged stays merged."""
    originals = {}
    for name, registered in model.named_modules(remove_duplicate=False):
        is_list = isinstance(registered, ParametrizationList)
        if is_list and _is_lora(registered[0]):
            originals[f"{name}.original"] = name.replace("parametrizations.", "")
    return {
        originals.get(key, key): tensor
        for key, tensor in model.state_dict().items()
        if not _LORA_KEY.search(key)
    }


def _is_lora(module: nn.Module) -> bool:
    return isinstance(module, AdapterParametrization)


class Merged:
    """What :func:`.merge.merge_lora` keeps of a network, to undo it: its ``lora_merged``.

    It follows a deep copy, but no pickle, which is that of a plain network.

    Attributes:
        names: the merged adapters.
        weights: of each changed weight, what was registered on it, and the tensors below that.
        base: the part of :func:`base_state_dict` that merging changed, as it was.
        added: the keys that are not in the base's own ``state_dict``.
        sha256: of each tensor beside the adapters, once they were merged.
        frozen: what kept the base in eval mode; empty as long as other adapters do need it.
    """

    def __init__(self, names: list[str], weights: dict[str, Any]) -> None:
        self.names = names
        self.weights = weights
        self.base: dict[str, Tensor] = {}
        self.added: list[str] = []
        self.sha256: dict[str, str] = {}
        self.frozen: dict[str, Any] = {}

    def take_out(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Put the base's own tensors in the place of merged ones in a ``state_dict``."""
        for key in self.added:
            del state[prefix + key]
        for key, tensor in self.base.items():
            state[prefix + key] = tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "Merged":
        twin = Merged([], {})
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return dict, ()


def merged_in(model: nn.Module) -> Merged | None:
    """What :func:`.merge.merge_lora` kept of ``model``, if it was called on it."""
    merged = getattr(model, "lora_merged", None)
    return merged if isinstance(merged, Merged) else None


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
    adapters = [m for m in model.modules() if _is_lora(m)]
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
        is_lora = any(isinstance(module, LoRAParametrization) for module in model.modules())
        what = "LoRA" if is_lora else "the adapter"
        total += f" + {lora:,} of {what} = {base + lora:,}, increase {increase:.3f}%"
    return f"{total}; trainable: {trainable:,}"
