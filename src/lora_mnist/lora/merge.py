"""Merging adapters into the weights of a network, undoing that bit for bit, and taking them off."""

from collections.abc import Collection, Sequence

from torch import nn

from .base_state import Merged, fingerprint, merged_in, unadapted_state
from .frozen import release_base
from .layer import is_lora_alone
from .model import has_lora, lora_names, lora_weights, named_adapters
from .targets import listed
from .variants import DoRAParametrization
from .weight import adaptable_weights


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
        name: which adapter to merge; ``None``: all.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or one would
            stay on a weight that carries another parametrization too. ``model`` is then as it was.
    """
    if not has_lora(model):
        raise ValueError("no layer of the model carries LoRA")
    names = _chosen(model, name)
    for layer, weight in lora_weights(model).items():
        others = [adapter for adapter in weight.adapters if adapter.name not in names]
        if others and not is_lora_alone(weight.parametrizations):
            raise ValueError(
                f"name={name}: {layer} carries another parametrization beside LoRA; expected "
                "name=None, to merge all"
            )
        _require_below(layer, weight.adapters, names)
    if merged := merged_in(model):
        _restore(model, merged)
        names = [*merged.names, *names]
    _fold(model, names)
    return model


def unmerge_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are again what they were, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another.

    Args:
        model: network with merged adapters; changed in place, and returned.
        name: which of them to take out again; ``None``: all.

    Raises:
        ValueError: if no adapter is merged, none that is has this name, or a tensor of the base
            changed since, which would be lost. ``model`` is then as it was.
    """
    merged = merged_in(model)
    if merged is None:
        raise ValueError("no adapter of the model is merged")
    if name not in (None, *merged.names):
        raise ValueError(f"name={name}: expected one of the merged: {', '.join(merged.names)}")
    left = [other for other in merged.names if name not in (None, other)]
    for layer, (registered, _) in merged.weights.items():
        _require_below(layer, registered, left)
    _restore(model, merged)
    if left:
        _fold(model, left)
    return model


def remove_lora(model: nn.Module, name: str | None = None) -> nn.Module:
    """Throw adapters away, merged ones too; without any, ``model`` is the plain base again.

    It is so bit for bit, and still frozen.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        name: which adapter to throw away; ``None``: all.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or what is
            merged changed since. ``model`` is then as it was.
    """
    names = _chosen(model, name)
    merged = merged_in(model)
    if merged:
        _restore(model, merged)
    for weight in lora_weights(model).values():
        weight.drop(names)
    if merged and (left := [other for other in merged.names if other not in names]):
        _fold(model, left)
    elif not has_lora(model):
        release_base(model)
    return model


def _require_below(layer: str, stack: Sequence[nn.Module], names: Collection[str]) -> None:
    """Refuse to have merged the adapters called ``names`` where DoRA needs others below them."""
    if not any(isinstance(each, DoRAParametrization) for each in stack):
        return
    others = []
    for adapter in stack:
        if adapter.name not in names:
            others.append(adapter.name)
        elif others:
            raise ValueError(
                f"name={adapter.name}: DoRA on {layer} depends on what lies below; expected "
                f"{others[0]} to be merged first, and taken out last"
            )


def _chosen(model: nn.Module, name: str | None) -> list[str]:
    """The names that ``name`` stands for, of adapters that are merged or not; never none."""
    names = lora_names(model)
    if not names or name not in (None, *names):
        named_adapters(model, name)  # which refuses
    return names if name is None else [name]


def _fold(model: nn.Module, names: Collection[str]) -> None:
    """Merge the adapters called ``names`` into ``model``, which has none merged."""
    before = unadapted_state(model)
    merged = Merged(list(dict.fromkeys(names)), {})
    for layer, weight in lora_weights(model).items():
        if any(adapter.name in names for adapter in weight.adapters):
            merged.weights[layer] = weight.fold(names)
    after = unadapted_state(model)
    for key, tensor in before.items():
        if key not in after or after[key].data_ptr() != tensor.data_ptr():
            merged.base[key] = tensor
    merged.added = [key for key in after if key not in before]
    merged.sha256 = {key: fingerprint({key: tensor}) for key, tensor in after.items()}
    if not has_lora(model):
        merged.frozen = release_base(model)
    model.lora_merged = merged  # type: ignore[assignment]


def _restore(model: nn.Module, merged: Merged) -> None:
    """Take everything out of ``model`` that is merged, unless that would lose a change."""
    state = unadapted_state(model)
    changed = []
    for key in merged.sha256.keys() | state.keys():
        if key not in state or fingerprint({key: state[key]}) != merged.sha256.get(key):
            changed.append(key)
    if changed:
        raise ValueError(
            f"the network changed after merge_lora: {listed(sorted(changed), most=3)}; expected "
            "it as it was, since to undo the merge would lose that"
        )
    weights = adaptable_weights(model)
    for layer, kept in merged.weights.items():
        weights[layer].restore(*kept)
        for adapter in weights[layer].adapters:
            adapter.train(model.training)
    del model.lora_merged
    for part, frozen in merged.frozen.items():
        frozen.attach(model.get_submodule(part))
