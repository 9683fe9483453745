"""Which layers ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` mean, read as in PEFT."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from .weight import Weight, adaptable_weights

log = logging.getLogger(__name__)

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
        is_wanted = _is_linear if target_modules.lower() == "all-linear" else _is_factorable
        chosen = {name: weight for name, weight in weights.items() if is_wanted(weight)}
        if not chosen:
            raise _nothing_matches(target_modules, "a linear or a conv2d layer", weights)
        return chosen
    entries = _entries(target_modules)
    names = answers(weights, model)
    for entry, is_named in entries.items():
        if not any(is_named(name) for of_one in names.values() for name in of_one):
            what = "a layer" if entry == target_modules else f"a layer with {entry}"
            raise _nothing_matches(target_modules, what, weights)
    _warn_of_the_rest(target_modules, entries.values(), model, weights)
    return {
        name: weight
        for name, weight in weights.items()
        if any(is_named(answer) for is_named in entries.values() for answer in names[name])
    }


def _is_linear(weight: Weight) -> bool:
    return isinstance(weight.module, nn.Linear) and weight.tensor == "weight"


def _is_factorable(weight: Weight) -> bool:
    module = weight.module
    is_convolution = isinstance(module, nn.Conv2d) and module.groups == 1
    return _is_linear(weight) or (is_convolution and weight.tensor == "weight")


def _entries(target_modules: Any) -> dict[str, Callable[[str], bool]]:
    """Each part of ``target_modules``, and whether it names a layer."""
    if isinstance(target_modules, str):
        expression = compiled("target_modules", target_modules)
        return {target_modules: lambda name: expression.fullmatch(name) is not None}
    is_list = isinstance(target_modules, Collection) and len(target_modules) > 0
    if not is_list or not all(isinstance(entry, str) for entry in target_modules):
        raise ValueError(
            f"target_modules={target_modules}: expected all, all-linear, a regular expression or a "
            "list of names"
        )
    return {entry: lambda name, entry=entry: ends_in(name, entry) for entry in target_modules}  # type: ignore[misc]


def ends_in(name: str, end: str) -> bool:
    """Whether the layer ``name`` is called ``end``, wholly or from a dot on."""
    return name == end or name.endswith(f".{end}")


def answers(weights: Collection[str], model: nn.Module) -> dict[str, list[str]]:
    """The names to which each of ``weights`` of ``model`` answers: its own, or its layer's too."""
    modules = dict(model.named_modules())
    parents = {name: name.rpartition(".")[0] for name in weights}
    return {
        name: [name, parent] if isinstance(modules[parent], _SEVERAL) else [name]
        for name, parent in parents.items()
    }


def _nothing_matches(target_modules: Any, what: str, names: Collection[str]) -> ValueError:
    return ValueError(
        f"target_modules={target_modules}: expected to match {what}, of: {listed(names)}"
    )


def listed(names: Collection[str], most: int = 20) -> str:
    """``names`` for a message, the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more or "none"


def _warn_of_the_rest(
    target_modules: Any,
    entries: Iterable[Callable[[str], bool]],
    model: nn.Module,
    weights: Mapping[str, Weight],
) -> None:
    adaptable = {weight.module for weight in weights.values()}
    rest = [
        name
        for name, module in model.named_modules()
        if module not in adaptable
        and any(True for _ in module.parameters(recurse=False))
        and "parametrizations" not in name.split(".")
        and any(is_named(name) for is_named in entries)
    ]
    if rest:
        log.warning(
            "target_modules=%s also names %s, which stay as they are: an adapter needs a weight of "
            "two or more dimensions",
            target_modules,
            listed(rest, most=5),
        )


def pattern_value(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """What ``rank_pattern`` or ``alpha_pattern`` says of the layer ``name``.

    A key is a regular expression for the end of a name, from its start or from a dot on; the first
    key that matches holds.
    """
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """What ``pattern`` says of each of ``names``.

    Args:
        argument: ``rank_pattern`` or ``alpha_pattern``, for messages.
        pattern: values by regular expression; see :func:`pattern_value`.
        names: layers.
        default: the value of the layers that no key matches.

    Raises:
        ValueError: if ``pattern`` is no mapping, or a key is no regular expression or matches no
            layer.
    """
    if not isinstance(pattern, Mapping | None):
        raise ValueError(f"{argument}={pattern}: expected a mapping from layers to values, or null")
    for key, value in (pattern or {}).items():
        compiled(argument, key)
        if not any(pattern_value({key: True}, name, False) for name in names):
            raise ValueError(f"{argument}={{{key}: {value}}}: expected a layer of: {listed(names)}")
    return {name: pattern_value(pattern or {}, name, default) for name in names}


def compiled(argument: str, expression: str) -> re.Pattern[str]:
    """``expression`` as a regular expression.

    Raises:
        ValueError: if it is none.
    """
    try:
        return re.compile(expression)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{argument}={expression}: expected a regular expression ({error})"
        ) from error
