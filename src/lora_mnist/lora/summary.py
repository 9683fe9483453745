"""What a network carries: its adapters by name, and the base that they stand on."""

from typing import NamedTuple

from torch import nn

from .base_state import base_state_dict, fingerprint, merged_names, unmerged
from .layer import LoRAParametrization
from .weight import lora_weights


class AdaptedLayer(NamedTuple):
    """One adapter on one layer."""

    name: str
    layer: str  # its name, as in target_modules
    rank: int | None  # None of a tensor that is trained whole
    scaling: float  # as trained, alpha / rank
    scale: float  # the further factor; see set_lora_scale
    numbers: int  # how many the adapter has on this layer
    state: str  # on, off, or merged


class LoRASummary(NamedTuple):
    """The adapters of a network; as a string, a table with a line for each row.

    Attributes:
        base_sha256: the fingerprint of the base, without what is merged into it.
        rows: in the model's order, and on each layer in that of the stack.
    """

    base_sha256: str
    rows: list[AdaptedLayer]

    def __str__(self) -> str:
        table = [("adapter", "layer", "rank", "scaling", "scale", "numbers", "state")]
        for row in self.rows:
            rank = "-" if row.rank is None else str(row.rank)
            scaling, scale, numbers = f"{row.scaling:.4g}", f"{row.scale:.4g}", f"{row.numbers:,}"
            table.append((row.name, row.layer, rank, scaling, scale, numbers, row.state))
        lines = [f"base {self.base_sha256}"]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)


def lora_summary(model: nn.Module) -> LoRASummary:
    """Every adapter of ``model``, merged ones too, and the base; ``print`` shows a table.

    A network without LoRA has no rows, and is its own base.
    """
    merged = merged_names(model)
    model = unmerged(model)
    rows = []
    for layer, weight in lora_weights(model).items():
        for adapter in weight.adapters:
            rank, scaling = None, 1.0
            if isinstance(adapter, LoRAParametrization):
                rank, scaling = adapter.settings.rank, adapter.scaling
            numbers = sum(parameter.numel() for parameter in adapter.parameters())
            state = "on" if adapter.enabled else "off"
            if adapter.name in merged:
                state = "merged"
            row = AdaptedLayer(adapter.name, layer, rank, scaling, adapter.scale, numbers, state)
            rows.append(row)
    return LoRASummary(fingerprint(base_state_dict(model)), rows)
