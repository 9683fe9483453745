"""Which layers ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` mean."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from .weight import Weight, adaptable_weights

# Layers with several weights: the layer's own name stands for all of them.
_SEVERAL = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


def target_weights(
    model: nn.Module, target_modules: str | Collection[str] = "all"
) -> dict[str, Weight]:
    """The weights of ``model`` that ``target_modules`` chooses, by name, in the model's order.

    What it may be stands at :func:`.model.add_lora`. The names are those of
    :func:`.weight.adaptable_weights`; the name of an attention or a recurrent layer stands for all
    its weights.

    Raises:
        ValueError: if that is no regular expression and no list, or if the string or an entry of
            the list matches nothing that can be adapted.
    """
    weights = {name: w for name, w in adaptable_weights(model).items() if w.base.ndim > 1}
    modules = dict(model.named_modules())
    names = {}  # to which each weight answers
    for name in weights:
        layer = name.rpartition(".")[0]
        names[name] = [name, layer] if isinstance(modules[layer], _SEVERAL) else [name]
    what, start = "a layer", f"target_modules={target_modules}: expected"
    if isinstance(target_modules, str) and target_modules.lower() in ("all", "all-linear"):
        kinds = (nn.Linear,) if target_modules.lower() == "all-linear" else (nn.Linear, nn.Conv2d)
        what = " or ".join(kind.__name__ for kind in kinds)
        chosen = []
        for name, weight in weights.items():
            is_grouped = getattr(weight.module, "groups", 1) > 1
            if isinstance(weight.module, kinds) and weight.tensor == "weight" and not is_grouped:
                chosen.append(name)
    elif isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(f"{start} a regular expression ({error})") from error
        chosen = [name for name in names if any(map(pattern.fullmatch, names[name]))]
    elif isinstance(target_modules, Collection):
        for entry in target_modules:
            if not any(is_among([entry], of) for of in names.values()):
                raise ValueError(f"{start} to match a layer with {entry}, of: {listed(weights)}")
        chosen = [name for name in names if is_among(target_modules, names[name])]
    else:
        raise ValueError(f"{start} all, all-linear, a regular expression or a list of names")
    if not chosen:
        raise ValueError(f"{start} to match {what}, of: {listed(weights)}")
    return {name: weights[name] for name in chosen}


def is_among(ends: Collection[str], names: Collection[str]) -> bool:
    """Whether one of ``ends`` is one of ``names``, or its end from a dot on."""
    return any(f".{name}".endswith(f".{end}") for name in names for end in ends)


def by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """What ``rank_pattern`` or ``alpha_pattern`` says of each of ``names``.

    PEFT reads a key as a regular expression for the end of a name. Here it is that end itself, from
    the start or from a dot on, with PEFT's leading ``^`` the whole name; the first that fits holds.

    Raises:
        ValueError: naming ``argument``, if ``pattern`` is no mapping or a key names no layer.
    """
    if not isinstance(pattern, Mapping | None):
        raise ValueError(f"{argument}={pattern}: expected a mapping from layers to values, or null")
    values = dict.fromkeys(names, default)
    for key, value in reversed(list((pattern or {}).items())):
        named = [name for name in names if is_among([key], [name]) or key == f"^{name}"]
        if not named:
            expected = f"a layer's name, or its end from a dot on, of: {listed(names)}"
            raise ValueError(f"{argument}={{{key}: {value}}}: expected {expected}")
        values.update(dict.fromkeys(named, value))
    return values


def listed(names: Collection[str], most: int = 20) -> str:
    """``names`` for a message, the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more or "none"
