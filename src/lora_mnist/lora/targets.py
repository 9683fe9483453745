"""Which layers ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` mean."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from .weight import Weight, adaptable_weights


def layers_to_adapt(
    model: nn.Module, target_modules: str | Collection[str] = "all"
) -> dict[str, Weight]:
    """The weights that ``target_modules`` of :func:`.model.add_lora` chooses, by name, in order."""
    weights = {name: w for name, w in adaptable_weights(model).items() if w.base.ndim > 1}
    start = f"target_modules={target_modules}: expected"
    entries = [target_modules] if isinstance(target_modules, str) else target_modules
    chosen: list[str] = []
    for entry in entries:
        if entry in ("all", "all-linear"):
            kinds = (nn.Linear,) if entry == "all-linear" else (nn.Linear, nn.Conv2d)
            named = []
            for name, weight in weights.items():
                is_kind = isinstance(weight.module, kinds) and weight.tensor == "weight"
                if is_kind and getattr(weight.module, "groups", 1) == 1:
                    named.append(name)
        elif isinstance(target_modules, str):
            try:
                pattern = re.compile(entry)
            except re.error as error:
                raise ValueError(f"{start} a regular expression ({error})") from error
            named = [name for name in weights if pattern.fullmatch(name)]
        else:
            named = [name for name in weights if is_end(entry, name)]
            if not named:
                raise ValueError(f"{start} a layer with {entry}, of: {listed(weights)}")
        chosen += named
    if not chosen:
        raise ValueError(f"{start} some of: {listed(weights)}")
    return {name: weight for name, weight in weights.items() if name in chosen}


def left_out_by_all(model: nn.Module) -> tuple[float, dict[str, float]]:
    """The share of the weights that ``all`` leaves out, and of each of these, the largest first.

    Layers go by their names, and other tensors by the last part of theirs, together.
    """
    targets, sizes, total = layers_to_adapt(model), Counter[str](), 0
    for name, weight in layers_to_adapt(model, ".*").items():
        total += weight.base.numel()
        if name not in targets:
            sizes[name if weight.tensor == "weight" else weight.tensor] += weight.base.numel()
    return sizes.total() / total, {name: size / total for name, size in sizes.most_common()}


def is_end(end: str, name: str) -> bool:
    """Whether ``end`` is ``name``, or its last parts, as ``linear1`` is of ``encoder.linear1``."""
    return f".{name}".endswith(f".{end}")


def by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """What a pattern gives to each name; a key is its end from a dot on, or, after ``^``, all."""
    values = dict.fromkeys(names, default)
    for key, value in reversed(list((pattern or {}).items())):
        named = [name for name in names if is_end(key, name) or key == f"^{name}"]
        if not named:
            expected = f"a layer's name, or its end from a dot on, of: {listed(names)}"
            raise ValueError(f"{argument}={{{key}: {value}}}: expected {expected}")
        values.update(dict.fromkeys(named, value))
    return values


def listed(names: Collection[str]) -> str:
    """``names`` for a message, the first twenty of them."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(list(names)[:20]) + more or "none"
