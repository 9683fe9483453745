"""The layers of a network and the adapters on them, as the rows of a table."""

from typing import NamedTuple

from torch import nn

from .weight import adaptable_weights


class LayerSummary(NamedTuple):
    """One adapter on one layer, or a layer without any."""

    layer: str  # its name, as in target_modules
    weight: tuple[int, ...]  # the shape of its weight
    bias: tuple[int, ...] | None
    adapter: str | None = None  # its name; None, and the rest without meaning, where there is none
    lora_A: tuple[int, ...] | None = None
    lora_B: tuple[int, ...] | None = None
    scaling: float = 0.0  # as trained, alpha / rank
    scale: float = 0.0  # the further factor; see set_lora_scale
    enabled: bool = False


def lora_summary(model: nn.Module) -> list[LayerSummary]:
    """The layers of ``model`` in its order, each with its adapters in the order of the stack."""
    rows = []
    for layer, weight in adaptable_weights(model).items():
        if weight.tensor != "weight" and weight.base.ndim < 2:
            continue
        bias = getattr(weight.module, "bias", None) if weight.tensor == "weight" else None
        bias_shape = tuple(bias.shape) if isinstance(bias, nn.Parameter) else None
        plain = LayerSummary(layer, tuple(weight.base.shape), bias_shape)
        for adapter in weight.adapters:
            row = plain._replace(
                adapter=adapter.name,
                lora_A=tuple(adapter.lora_A.shape),
                lora_B=tuple(adapter.lora_B.shape),
                scaling=adapter.scaling,
                scale=adapter.scale,
                enabled=adapter.enabled,
            )
            rows.append(row)
        if not weight.adapters:
            rows.append(plain)
    return rows
