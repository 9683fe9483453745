"""Merging adapters into the weights of a network, undoing that bit for bit, and taking them off."""

from typing import Any, NamedTuple

import torch
from torch import nn

from .frozen import FrozenBase, release_base
from .model import named_adapters
from .weight import adaptable_weights, lora_adapters, lora_weights


class Merged(NamedTuple):
    """What :func:`merge_lora` keeps to undo it, as the network's attribute ``lora_merged``."""

    registered: dict[str, Any]  # each weight as it was, with its adapters, by its name
    frozen: dict[str, FrozenBase]  # what kept the base in eval mode


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's weight and drop the parametrization.

    Afterwards ``model`` is a plain network that computes what the adapted one did:
    ``weight = W + scaling * lora_B @ lora_A`` (Hu et al. 2021, section 4.1), to floating-point
    rounding. A switched-off adapter adds nothing. The parameters stay frozen.

    The weights as they were are kept beside it, in ``model.lora_merged``, for :func:`unmerge_lora`,
    and go with it into copies and pickles. ``del model.lora_merged`` gives the memory back.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or it is merged already.
    """
    named_adapters(model)
    registered = {}
    for layer, weight in lora_weights(model).items():
        registered[layer] = weight.registered
        effective = getattr(weight.module, weight.tensor)
        if effective is weight.base:
            effective = effective.clone()  # the kept base shares no memory with the network
        weight.put(nn.Parameter(effective.detach(), requires_grad=False), [])
    model.lora_merged = Merged(registered, release_base(model))  # type: ignore[assignment]
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are again what they were, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another. So what was changed in a merged weight since is gone.

    Args:
        model: network with merged adapters; changed in place, and returned.

    Raises:
        ValueError: if no adapter is merged.
    """
    merged: Merged | None = getattr(model, "lora_merged", None)
    if merged is None:
        raise ValueError("no adapter of the model is merged")
    weights = adaptable_weights(model)
    for layer, registered in merged.registered.items():
        weight = weights[layer]
        registered.to(weight.base.device)
        weight.put(registered.original, list(registered))
    for adapter in lora_adapters(model):
        adapter.train(model.training)
    for part, frozen in merged.frozen.items():
        frozen.attach(model.get_submodule(part))
    del model.lora_merged
    return model


def remove_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Throw adapters away; without any, ``model`` is the plain base again, bit for bit.

    Its parameters are still frozen.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: which adapter to throw away; ``None``: all, merged ones too.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or a single one
            is named of a merged network. ``model`` is then as it was.
    """
    if name is None and hasattr(model, "lora_merged"):
        unmerge_lora(model)
    removed = named_adapters(model, name)
    for weight in lora_weights(model).values():
        weight.put(weight.base, [each for each in weight.adapters if each not in removed])
    if not lora_adapters(model):
        release_base(model)
    return model
