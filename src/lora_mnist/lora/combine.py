"""Several adapters as one: their exact scaled sum."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapter import load_adapter
from .layer import scaling_divisor
from .merge import remove_lora
from .model import attach, lora_names, named_adapters
from .peft import plain_lora
from .weight import lora_weights


def combine_adapters(
    model: nn.Module,
    folders: Sequence[str | Path],
    scales: Sequence[float],
    name: str | None = None,
    allow_other_base: bool = False,
) -> nn.Module:
    """Put the exact scaled sum of several saved adapters on ``model``, as one adapter.

    See :func:`sum_adapters`. :func:`.adapter.save_adapter` then writes the one adapter, which PEFT
    loads too.

    Args:
        model: the base that all were trained on; changed in place, and returned, its own parameters
            frozen.
        folders: what :func:`.adapter.save_adapter` or ``peft`` wrote.
        scales: how much of each; negative ones take an adapter's effect away.
        name: the name of the sum; see :func:`.model.add_lora`.
        allow_other_base: see :func:`.adapter.load_adapter`.

    Raises:
        ValueError: if there is no folder, or not one scale for each, or an adapter cannot be
            loaded; see :func:`.adapter.load_adapter`. ``model`` is then as it was.
    """
    twin = copy.deepcopy(model)
    if lora_names(twin):
        remove_lora(twin)
    for folder, scale in zip(folders, scales, strict=True):
        load_adapter(twin, folder, allow_other_base, scale=scale)
    sum_adapters(twin)
    attach(model, {layer: w.adapters[0] for layer, w in lora_weights(twin).items()}, name)
    return model


@torch.no_grad()
def sum_adapters(model: nn.Module, name: str | None = None) -> nn.Module:
    """Replace all adapters on ``model`` by one adapter, their exact scaled sum.

    The sum of products is itself a product, of factors side by side:

        sum_i s_i B_i A_i = [s_1 B_1, s_2 B_2, ...] @ [A_1; A_2; ...],    s_i = scale_i * scaling_i

    So it is exact, whatever the ranks, alphas, signs and layers of the adapters, and its rank on a
    layer is the sum of theirs. The network computes what it did, to rounding. The one adapter has
    the scale 1 and stands on the base alone. An adapter that is switched off adds nothing. Its
    metadata are those of the first, with the targets of all.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: the name of the sum; ``None``: that of the first adapter.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or the sum overflows. ``model`` is then
            as it was.
    """
    adapters = named_adapters(model)
    first = adapters[0]
    metadata: dict[str, Any] = {}
    targets: dict[str, None] = {}  # ordered, each once
    for adapter in adapters:
        metadata = {**adapter.metadata, **metadata}
        targets |= dict.fromkeys(adapter.metadata.get("targets", []))
    if targets:
        metadata["targets"] = list(targets)
    sums = {}
    for layer, weight in lora_weights(model).items():
        rows, columns = [], []
        for adapter in weight.adapters:
            lora_A, lora_B = adapter.factors()
            rows.append(lora_A.cpu().double())
            scale = adapter.scaling * adapter.scale * adapter.enabled
            columns.append(lora_B.cpu().double() * scale)
        lora_A, lora_B = torch.cat(rows), torch.cat(columns, dim=1)
        # With this alpha the scaling is 1: the factors hold the sum.
        sums[layer] = plain_lora(lora_A, lora_B, alpha=scaling_divisor(len(lora_A)))
    attach(model, sums)  # what it refuses is refused before an adapter is taken off
    for layer, weight in lora_weights(model).items():
        sums[layer].name, sums[layer].metadata = name or first.name, metadata
        weight.put(weight.base, [sums[layer]])
    return model
