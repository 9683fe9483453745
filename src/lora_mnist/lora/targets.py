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

    Args:
        model: any network.
        target_modules: ``all`` for every ``nn.Linear`` and every ``nn.Conv2d`` with ``groups=1``;
            ``all-linear`` for every ``nn.Linear``; any other string is a regular expression for the
            whole name; a list holds names, or ends of names from a dot on. The names are those of
            :func:`.weight.adaptable_weights`; the name of an attention or a recurrent layer stands
            for all its weights.

    Raises:
        ValueError: if that is no regular expression and no list of strings, or if the string or an
            entry of the list matches nothing that can be adapted.
    """
    weights = adaptable_weights(model)
    if isinstance(target_modules, str) and target_modules.lower() in ("all", "all-linear"):
        kinds = (nn.Linear,) if target_modules.lower() == "all-linear" else (nn.Linear, nn.Conv2d)
        chosen = {}
        for name, weight in weights.items():
            is_grouped = getattr(weight.module, "groups", 1) > 1
            if isinstance(weight.module, kinds) and weight.tensor == "weight" and not is_grouped:
                chosen[name] = weight
        if not chosen:
            raise _nothing_matches(target_modules, "a linear or a conv2d layer", weights)
        return chosen

    chosen_names: set[str] = set()
    for entry in _entries(target_modules):
        matching = set()
        for name, answers in names_of(weights, model).items():
            if isinstance(target_modules, str):
                is_named = any(re.fullmatch(entry, answer) for answer in answers)
            else:
                is_named = any(ends_in(answer, entry) for answer in answers)
            if is_named:
                matching.add(name)
        if not matching:
            what = "a layer" if entry == target_modules else f"a layer with {entry}"
            raise _nothing_matches(target_modules, what, weights)
        chosen_names |= matching
    return {name: weight for name, weight in weights.items() if name in chosen_names}


def _entries(target_modules: Any) -> list[str]:
    if isinstance(target_modules, str):
        try:
            re.compile(target_modules)
        except (re.error, OverflowError) as error:
            raise ValueError(
                f"target_modules={target_modules}: expected a regular expression ({error})"
            ) from error
        return [target_modules]
    is_list = isinstance(target_modules, Collection) and len(target_modules) > 0
    if not is_list or not all(isinstance(entry, str) for entry in target_modules):
        raise ValueError(
            f"target_modules={target_modules}: expected all, all-linear, a regular expression or a "
            "list of names"
        )
    return list(target_modules)


def names_of(weights: Mapping[str, Weight], model: nn.Module) -> dict[str, list[str]]:
    """The names to which each of ``weights`` of ``model`` answers: its own, or its layer's too."""
    modules = dict(model.named_modules())
    names = {}
    for name in weights:
        layer = name.rpartition(".")[0]
        names[name] = [name, layer] if isinstance(modules[layer], _SEVERAL) else [name]
    return names


def ends_in(name: str, end: str) -> bool:
    """Whether ``end`` is ``name``, or its end from a dot on."""
    return name == end or name.endswith(f".{end}")


def by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """What ``rank_pattern`` or ``alpha_pattern`` says of each of ``names``.

    PEFT reads a key as a regular expression for the end of a name. Here it is that end itself, from
    the start or from a dot on, with PEFT's leading ``^`` the whole name; the first that fits holds.

    Args:
        argument: ``rank_pattern`` or ``alpha_pattern``, for messages.
        pattern: values by end of a layer's name.
        names: layers.
        default: the value of the layers that no key names.

    Raises:
        ValueError: if ``pattern`` is no mapping, or a key names no layer.
    """
    if not isinstance(pattern, Mapping | None):
        raise ValueError(f"{argument}={pattern}: expected a mapping from layers to values, or null")
    values = dict.fromkeys(names, default)
    for key, value in reversed(list((pattern or {}).items())):
        named = [name for name in names if ends_in(name, key) or key == f"^{name}"]
        if not named:
            raise ValueError(
                f"{argument}={{{key}: {value}}}: expected a layer's name, or its end from a dot "
                f"on, of: {listed(names)}"
            )
        values.update(dict.fromkeys(named, value))
    return values


def _nothing_matches(target_modules: Any, what: str, names: Collection[str]) -> ValueError:
    return ValueError(
        f"target_modules={target_modules}: expected to match {what}, of: {listed(names)}"
    )


def listed(names: Collection[str], most: int = 20) -> str:
    """``names`` for a message, the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more or "none"
