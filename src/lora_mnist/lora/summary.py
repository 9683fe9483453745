"""What a network carries: its adapters by name, and the base that they stand on."""

from typing import NamedTuple

from torch import nn

from .base_state import base_state_dict, fingerprint, merged_in
from .layer import AdapterParametrization, LoRAParametrization
from .model import has_lora
from .weight import adaptable_weights


class AdaptedLayer(NamedTuple):
    """One adapter on one layer.

    Attributes:
        name: the adapter.
        layer: its name, as in ``target_modules``.
        rank: inner dimension of the update; ``None`` of a tensor that is trained whole.
        scaling: the factor of the update as trained, ``alpha / rank``.
        scale: the further factor; see :func:`.model.set_lora_scale`.
        numbers: how many the adapter has on this layer.
        enabled: whether it is switched on.
        merged: whether it is part of the layer's weight; see :func:`.merge.merge_lora`.
    """

    name: str
    layer: str
    rank: int | None
    scaling: float
    scale: float
    numbers: int
    enabled: bool
    merged: bool


class LoRASummary(NamedTuple):
    """The adapters of a network; as a string, a table with a row for each.

    Attributes:
        base_sha256: the fingerprint of the base, without what is merged into it.
        rows: in the model's order, and on each layer in that of the stack.
    """

    base_sha256: str
    rows: list[AdaptedLayer]

    def __str__(self) -> str:
        table = [("adapter", "rank", "scaling", "scale", "numbers", "state", "layers")]
        for name in dict.fromkeys(row.name for row in self.rows):
            rows = [row for row in self.rows if row.name == name]
            columns: list[list[object]] = [[], [], [], []]
            for row in rows:
                state = "merged" if row.merged else "on" if row.enabled else "off"
                values = (row.rank or "-", f"{row.scaling:.4g}", f"{row.scale:.4g}", state)
                for column, value in zip(columns, values, strict=True):
                    if value not in column:
                        column.append(value)
            rank, scaling, scale, state = (", ".join(map(str, column)) for column in columns)
            numbers = f"{sum(row.numbers for row in rows):,}"
            layers = ", ".join(row.layer for row in rows)
            table.append((name, rank, scaling, scale, numbers, state, layers))
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
    rows = []
    merged = merged_in(model)
    for layer, weight in adaptable_weights(model).items():
        stack = list(weight.adapters)
        if merged and layer in merged.weights:
            registered, _ = merged.weights[layer]
            stack = [*registered, *(adapter for adapter in stack if adapter not in registered)]
        for adapter in stack:
            if isinstance(adapter, AdapterParametrization):
                is_merged = merged is not None and adapter.name in merged.names
                numbers = sum(parameter.numel() for parameter in adapter.parameters())
                rank, scaling = None, 1.0
                if isinstance(adapter, LoRAParametrization):
                    rank, scaling = adapter.rank, adapter.scaling
                row = (adapter.name, layer, rank, scaling, adapter.scale, numbers)
                rows.append(AdaptedLayer(*row, adapter.enabled, is_merged))
    state = base_state_dict(model)
    if merged and not has_lora(model):
        merged.take_out(state)
    return LoRASummary(fingerprint(state), rows)
