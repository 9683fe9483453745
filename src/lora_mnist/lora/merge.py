"""Merging adapters into the weights of a network, undoing that bit for bit, and taking them off."""

import torch
from torch import nn

from .frozen import keep_in_eval_mode, release_base
from .model import usable_adapters
from .weight import adaptable_weights, lora_adapters, lora_weights


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
    usable_adapters(model)
    registered = {}
    for layer, weight in lora_weights(model).items():
        registered[layer] = weight.module.parametrizations[weight.tensor]  # type: ignore[index]
        effective = getattr(weight.module, weight.tensor)
        if effective is weight.base:
            effective = effective.clone()  # the kept base shares no memory with the network
        weight.put(nn.Parameter(effective.detach(), requires_grad=False), [])
    model.lora_merged = registered, release_base(model)  # type: ignore[assignment]
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are again what they were, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another. Changes made to a merged weight are lost.

    Args:
        model: network with merged adapters; changed in place, and returned.

    Raises:
        ValueError: if no adapter is merged.
    """
    if not hasattr(model, "lora_merged"):
        raise ValueError("no adapter of the model is merged")
    registered, parts = model.lora_merged  # type: ignore[misc]
    weights = adaptable_weights(model.requires_grad_(False))
    for layer, before in registered.items():
        before.to(weights[layer].base.device)
        weights[layer].put(before.original, list(before))
    for adapter in lora_adapters(model):
        adapter.train(model.training)
    for part in parts:
        keep_in_eval_mode(model.get_submodule(part))
    del model.lora_merged
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Throw all adapters away, merged ones too: ``model`` is the plain base again, bit for bit.

    Its parameters are still frozen.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA.
    """
    if hasattr(model, "lora_merged"):
        unmerge_lora(model)
    usable_adapters(model)
    for weight in lora_weights(model).values():
        weight.put(weight.base, [])
    release_base(model)
    return model
