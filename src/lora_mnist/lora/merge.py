"""Merging adapters into the weights of a network, undoing that bit for bit, and taking them off."""

from torch import nn

from .base_state import Merged, merged_names, undo_merge
from .frozen import release_base
from .model import chosen_names, lora_names
from .variants import DoRAParametrization
from .weight import lora_adapters, lora_weights


def merge_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Fold adapters into their layers' weights and drop the parametrizations.

    A layer whose every adapter is merged is afterwards a plain layer, still frozen, that computes
    what the adapted one did: ``weight = W + scaling * lora_B @ lora_A`` (Hu et al. 2021, section
    4.1), to floating-point rounding. A switched-off adapter adds nothing. Once all are merged,
    ``model`` is a plain network to ``state_dict``, ``torch.export`` and a new adapter, whose base
    it is.

    The weights as they were are kept beside it, in ``model.lora_merged``, for :func:`unmerge_lora`,
    and go with it into copies and pickles. ``del model.lora_merged`` gives the memory back.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: which adapter to merge; ``None``: all. What is merged already stays so.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or DoRA is
            among several of which some would not be merged. ``model`` is then as it was.
    """
    names = chosen_names(model, name)
    _merge_only(model, [*merged_names(model), *names])
    return model


def unmerge_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are again what they were, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another. So what was changed in a merged weight since is gone.

    Args:
        model: network with merged adapters; changed in place, and returned.
        name: which of them to take out again; ``None``: all.

    Raises:
        ValueError: if no adapter is merged, none that is has this name, or DoRA is among several of
            which some would stay merged. ``model`` is then as it was.
    """
    names = merged_names(model)
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
    names = chosen_names(model, name)
    still_merged = [other for other in merged_names(model) if other not in names]
    _merge_only(model, [])
    for weight in lora_weights(model).values():
        left = [adapter for adapter in weight.adapters if adapter.name not in names]
        weight.put(weight.base, left)
    _merge_only(model, still_merged)
    if not lora_names(model):
        release_base(model)
    return model


def _merge_only(model: nn.Module, names: list[str]) -> None:
    """Merge the adapters called ``names`` into ``model``, and no others."""
    before = merged_names(model)
    if before:
        undo_merge(model)
    if not names:
        return
    adapters = lora_adapters(model)
    has_dora = any(isinstance(adapter, DoRAParametrization) for adapter in adapters)
    if has_dora and not {adapter.name for adapter in adapters} <= set(names):
        _merge_only(model, before)
        raise ValueError("DoRA depends on what lies below it; expected all adapters to be merged")
    kept = {}
    for layer, weight in lora_weights(model).items():
        merged, left = weight.base, []
        for adapter in weight.adapters:
            if adapter.name in names:
                merged = adapter(merged)
            else:
                left.append(adapter)
        if len(left) < len(weight.adapters):
            kept[layer] = weight.registered
            # A parameter of its own: another layer may share the old one, which stays as it was.
            weight.put(nn.Parameter(merged.detach().clone(), requires_grad=False), left)
    frozen = {} if lora_adapters(model) else release_base(model)
    model.lora_merged = Merged(list(dict.fromkeys(names)), kept, frozen)  # type: ignore[assignment]
