"""Selects the weights of a network by the argument ``target_modules``."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from .errors import require
from .weight import Weight, float_parameters


def layers_to_adapt(
    model: nn.Module, target_modules: str | Collection[str] = "all"
) -> dict[str, Weight]:
    """Return the weights that ``target_modules`` of :func:`.model.add_lora` chooses, by name."""
    weights = {name: w for name, w in float_parameters(model).items() if w.original.ndim > 1}
    kinds = {"all": (nn.Linear, nn.Conv2d), "all-linear": (nn.Linear,)}
    chosen: list[str] = []
    for entry in [target_modules] if isinstance(target_modules, str) else target_modules:
        if entry in kinds:
            for name, weight in weights.items():
                is_ungrouped = getattr(weight.module, "groups", 1) == 1
                is_layer = isinstance(weight.module, kinds[entry]) and weight.attribute == "weight"
                if is_layer and is_ungrouped:
                    chosen.append(name)
        else:
            entries = entry if isinstance(target_modules, str) else [entry]
            named = [name for name in weights if is_named(name, entries)]
            expected = f"a layer with {entry}, of: {format_names(weights)}"
            require(len(named) > 0, "target_modules", target_modules, expected)
            chosen += named
    expected = f"some of: {format_names(weights)}"
    require(len(chosen) > 0, "target_modules", target_modules, expected)
    return {name: weight for name, weight in weights.items() if name in chosen}


def find_unadapted(model: nn.Module) -> tuple[float, list[str]]:
    """Return the share of the weights that ``all`` omits, and their names, the largest first."""
    targets, sizes, total = layers_to_adapt(model), Counter[str](), 0
    for name, weight in layers_to_adapt(model, ".*").items():
        size = weight.original.numel()
        total += size
        if name not in targets:
            sizes[name if weight.attribute == "weight" else weight.attribute] += size
    return sizes.total() / total, [name for name, _ in sizes.most_common()]


def is_end(end: str, name: str) -> bool:
    """Return whether ``end`` is ``name`` or its last parts, as ``linear1`` is of ``a.linear1``."""
    return f".{name}".endswith(f".{end}")


def is_named(name: str, target_modules: str | Collection[str]) -> bool:
    """Return whether ``name`` fits one of these, as in PEFT: a regular expression, or endings."""
    if isinstance(target_modules, str):
        with suppress(re.error):
            return bool(re.fullmatch(target_modules, name))
        return False
    return any(is_end(end, name) for end in target_modules)


def resolve_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """Return the value for each name: from the first key in ``pattern`` that fits, or default."""
    values = dict.fromkeys(names, default)
    for key, value in reversed(list((pattern or {}).items())):
        named = [name for name in names if is_end(key, name) or key == f"^{name}"]
        expected = f"a layer's name, or its end from a dot on, of: {format_names(names)}"
        require(len(named) > 0, argument, f"{{{key}: {value}}}", expected)
        values.update(dict.fromkeys(named, value))
    return values


def format_names(names: Collection[str]) -> str:
    """Return the first twenty of ``names`` as text for a message."""
    if len(names) > 20:
        return f"{', '.join(list(names)[:20])} and {len(names) - 20} more"
    return ", ".join(names) or "none"
