"""Merging adapters into the weights of a network, undoing that bit for bit, and taking them off."""

from torch import nn

from .base_state import Merged, merged_in
from .frozen import release_base
from .layer import AdapterParametrization
from .model import has_lora, lora_names, lora_weights, named_adapters
from .variants import DoRAParametrization
from .weight import Weight


def merge_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Fold adapters into their layers' weights and drop the parametrizations.

    A layer whose every adapter is merged is afterwards a plain layer, still frozen, that computes
    what the adapted one did: ``weight = W + scaling * lora_B @ lora_A`` (Hu et al. 2021, section
    4.1), to floating-point rounding. A switched-off adapter adds nothing. Once all are merged,
    ``model`` is a plain network to ``state_dict``, ``torch.export``, pickle and a new adapter,
    whose base it is.

    The weights as they were are kept beside it, in ``model.lora_merged``, for :func:`unmerge_lora`;
    whoever needs the memory deletes that attribute.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: which adapter to merge; ``None``: all. What is merged already stays so.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or DoRA or
            somebody else's parametrization would be merged above one that stays. ``model`` is then
            as it was.
    """
    names = _chosen(model, name)
    _merge_only(model, [*_merged_names(model), *names])
    return model


def unmerge_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are again what they were, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another. So what was changed in a merged weight since is gone.

    Args:
        model: network with merged adapters; changed in place, and returned.
        name: which of them to take out again; ``None``: all.

    Raises:
        ValueError: if no adapter is merged, none that is has this name, or DoRA or somebody else's
            parametrization above it would stay merged. ``model`` is then as it was.
    """
    names = _merged_names(model)
    if not names:
        raise ValueError("no adapter of the model is merged")
    if name not in (None, *names):
        raise ValueError(f"name={name}: expected one of the merged: {', '.join(names)}")
    _merge_only(model, [other for other in names if name not in (None, other)])
    return model


def remove_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Throw adapters away, merged ones too; without any, ``model`` is the plain base again.

    It is so bit for bit, and still frozen.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: which adapter to throw away; ``None``: all.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or no adapter has that name. ``model`` is
            then as it was.
    """
    names = _chosen(model, name)
    left = [other for other in _merged_names(model) if other not in names]
    _merge_only(model, [])
    for weight in lora_weights(model).values():
        weight.drop(names)
    if has_lora(model):
        _merge_only(model, left)
    else:
        release_base(model)
    return model


def _merged_names(model: nn.Module) -> list[str]:
    merged = merged_in(model)
    return merged.names if merged else []


def _chosen(model: nn.Module, name: str | None) -> list[str]:
    """The names that ``name`` stands for, of adapters that are merged or not; never none."""
    names = lora_names(model)
    if not names or name not in (None, *names):
        named_adapters(model, name)  # which refuses
    return names if name is None else [name]


def _merge_only(model: nn.Module, names: list[str]) -> None:
    """Merge the adapters called ``names`` into ``model``, and no others."""
    before = _merged_names(model)
    if merged := merged_in(model):
        merged.undo(model)
    if not names:
        return
    weights = {}
    for layer, weight in lora_weights(model).items():
        if any(adapter.name in names for adapter in weight.adapters):
            weights[layer] = weight
    try:
        for layer, weight in weights.items():
            _require_order(layer, weight, names)
    except ValueError:
        _merge_only(model, before)
        raise
    merged = Merged(list(dict.fromkeys(names)))
    for layer, weight in weights.items():
        merged.registered[layer] = weight.merge(names)
    if not has_lora(model):
        merged.frozen = release_base(model)
    model.lora_merged = merged  # type: ignore[assignment]


def _require_order(layer: str, weight: Weight, names: list[str]) -> None:
    """Refuse to merge above what stays, where the order on the weight makes a difference."""
    stack = list(weight.parametrizations)
    is_ours = len(stack) == len(weight.adapters)
    if is_ours and not any(isinstance(each, DoRAParametrization) for each in stack):
        return
    left = []
    for each in stack:
        if isinstance(each, AdapterParametrization) and each.name not in names:
            left.append(each.name)
        elif left:
            raise ValueError(
                f"{layer}: DoRA, or somebody else's parametrization, depends on what lies below; "
                f"expected {left[0]} to be merged first, and taken out last"
            )
