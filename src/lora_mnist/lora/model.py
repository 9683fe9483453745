"""LoRA on a whole network: put adapters on its layers, switch them, turn them up and down.

An adapter is registered with :mod:`torch.nn.utils.parametrize`: ``layer.weight`` then reads as the
effective weight ``W + scaling * lora_B @ lora_A``, ``layer.parametrizations.weight.original`` is
the frozen ``W``, and ``layer.parametrizations.weight[0]`` the :class:`.layer.LoRAParametrization`;
a second adapter stacks as ``[1]``. What one layer computes stands in :mod:`.layer`, how adapters
are merged and taken off in :mod:`.merge`.

Functions with a ``name`` act on the adapter of that name, or on every one with ``None``. They raise
``ValueError`` if no layer carries LoRA, no adapter has that name, or one of them is merged.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from .base_state import merged_names
from .frozen import freeze_base
from .layer import AdapterParametrization
from .settings import LayerSettings, is_number
from .targets import by_pattern, target_weights
from .variants import fold_scale, make_adapter
from .weight import adaptable_weights, lora_adapters, lora_weights


def add_lora(
    model: nn.Module,
    rank: int = 1,
    alpha: float = 1.0,
    target_modules: str | Collection[str] = "all",
    init: str = "gaussian",
    init_std: float | None = None,
    use_rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    name: str | None = None,
    base_dropout: bool = False,
    use_dora: bool = False,
) -> nn.Module:
    """Put a trainable LoRA adapter on chosen layers and freeze everything else.

    Only weights are adapted; every bias is frozen (Hu et al. 2021, section 4.2). Called again, it
    stacks a second adapter on the first, which is then frozen too. ``model.train()`` no longer
    reaches the base, whose statistics stay as they are; see :func:`.frozen.freeze_base`.

    Args:
        model: any network; changed in place, and returned.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: the update is scaled by ``alpha / rank``; finite and > 0.
        target_modules: the layers that get an adapter, as in PEFT: a regular expression for whole
            names, a list of names or of ends of names from a dot on, ``all-linear`` for every
            ``nn.Linear``, or ``all`` for every ``nn.Conv2d`` with ``groups=1`` too. Other weights
            of two or more dimensions are chosen by name.
        init: how the adapter starts: ``gaussian``, ``kaiming`` or ``pissa``; see
            :class:`.layer.LoRAParametrization` and :class:`.variants.PiSSAParametrization`.
        init_std: with ``gaussian``, ``lora_A`` starts as N(0, init_std^2); ``None``: 1.
        use_rslora: scale by ``alpha / sqrt(rank)`` instead.
        dropout: probability of zeroing each input of the adapter while training, in [0, 1).
        rank_pattern: ranks of single layers, by name or by the end of a name from a dot on.
        alpha_pattern: alphas of single layers, in the same way.
        name: tells the adapter from others on ``model``; by default ``default``, then
            ``default2`` and so on.
        base_dropout: whether the base's own dropout acts while the adapter trains.
        use_dora: train each output's magnitude apart from its direction; see
            :class:`.variants.DoRAParametrization`.

    Raises:
        ValueError: if an argument is out of range or names no layer, if a layer cannot be adapted,
            if the base holds no numbers yet, or if ``name`` is taken. ``model`` is then as it was.
    """
    targets = target_weights(model, target_modules)
    usual = LayerSettings(rank, alpha, init, init_std, use_rslora, dropout, use_dora)
    ranks = by_pattern("rank_pattern", rank_pattern, targets, rank)
    alphas = by_pattern("alpha_pattern", alpha_pattern, targets, alpha)
    settings = {}
    for layer in targets:
        settings[layer] = replace(usual, rank=ranks[layer], alpha=alphas[layer])
    attach(model, settings, name, base_dropout)
    return model


def add_deltas(
    model: nn.Module, tensors: str, name: str | None = None, base_dropout: bool = False
) -> nn.Module:
    """Put an adapter on ``model`` that trains some of its tensors whole: ``W + delta``.

    It is switched, scaled, stacked, merged and saved like LoRA, as PEFT saves ``bias="all"``
    and ``modules_to_save``.

    Args:
        model: any network; changed in place, and returned.
        tensors: ``bias`` for every bias, as in BitFit (Ben Zaken et al. 2022, arXiv:2106.10199), or
            ``last_layer`` for weight and bias of the last ``nn.Linear`` or ``nn.Conv2d``, in the
            order in which the network lists its layers.
        name: as for :func:`add_lora`.
        base_dropout: as for :func:`add_lora`.

    Raises:
        ValueError: if ``model`` has no such tensor, or as :func:`add_lora`.
    """
    weights = adaptable_weights(model)
    if tensors == "bias":
        chosen = [layer for layer, weight in weights.items() if "bias" in weight.tensor]
    elif tensors == "last_layer":
        last = list(target_weights(model).values())[-1].module
        chosen = [layer for layer, weight in weights.items() if weight.module is last]
    else:
        raise ValueError(f"tensors={tensors}: expected bias or last_layer")
    if not chosen:
        raise ValueError(f"tensors={tensors}: expected a network with a bias")
    attach(model, dict.fromkeys(chosen), name, base_dropout)
    return model


def attach(
    model: nn.Module,
    settings: Mapping[str, LayerSettings | None],
    name: str | None = None,
    base_dropout: bool = False,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> list[AdapterParametrization]:
    """:func:`add_lora` on exactly the layers of ``settings``; ``None`` trains a tensor whole.

    Their names are those of :func:`.weight.adaptable_weights`. With ``tensors``, the ``state_dict``
    of each layer's adapter, they are adapters that exist already.
    """
    weights = adaptable_weights(model)
    is_first = not lora_adapters(model)
    taken = [] if is_first else lora_names(model)
    if name in taken:
        raise ValueError(f"name={name}: expected another name than {', '.join(taken)}")
    if name is None:
        name, number = "default", 2
        while name in taken:
            name, number = f"default{number}", number + 1

    adapters = {}
    for layer, weight in weights.items():  # the order in which random numbers are drawn
        if layer in settings:
            adapters[layer] = make_adapter(layer, weight, settings[layer], name)
            adapters[layer].train(model.training)
            if tensors:
                _load(adapters[layer], tensors[layer], layer)
    if is_first and merged_names(model):
        del model.lora_merged  # what is merged is part of this adapter's base
    if base_dropout or not hasattr(model, "lora_frozen_base"):
        freeze_base(model, base_dropout)
    model.requires_grad_(False)
    for layer, adapter in adapters.items():
        weight = weights[layer]
        weight.put(weight.base, [*weight.adapters, adapter])
    return list(adapters.values())


def _load(adapter: AdapterParametrization, tensors: Mapping[str, Tensor], layer: str) -> None:
    try:
        adapter.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{layer}: {' '.join(str(error).split())}") from error
    for part, parameter in adapter.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{part} of {layer}: expected finite numbers")


def lora_names(model: nn.Module) -> list[str]:
    """The names of the adapters on ``model``, merged ones first; empty without LoRA."""
    names = [adapter.name for adapter in lora_adapters(model)]
    return list(dict.fromkeys([*merged_names(model), *names]))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """What the adapters of ``model`` train, ``lora_A`` and ``lora_B``, and nothing else."""
    for adapter in lora_adapters(model):
        yield from adapter.parameters()


def chosen_names(model: nn.Module, name: str | None) -> list[str]:
    """The adapters that ``name`` stands for, merged or not; never none."""
    names = lora_names(model)
    if not names:
        raise ValueError("no layer of the model carries LoRA")
    if name not in (None, *names):
        raise ValueError(f"name={name}: expected one of {', '.join(names)}")
    return names if name is None else [name]


def named_adapters(model: nn.Module, name: str | None = None) -> list[AdapterParametrization]:
    """What the layers of ``model`` carry of the adapter ``name``, or of all; never nothing."""
    names, merged = chosen_names(model, name), merged_names(model)
    if set(names) & set(merged):
        raise ValueError(f"merged: {', '.join(merged)}; expected unmerge_lora(model) first")
    return [adapter for adapter in lora_adapters(model) if adapter.name in names]


def set_lora_enabled(model: nn.Module, enabled: bool, name: str | None = None) -> None:
    """Switch adapters of ``model`` on or off; with all off, it computes the base exactly."""
    for adapter in named_adapters(model, name):
        adapter.enabled = enabled


def set_lora_scale(model: nn.Module, scale: float, name: str | None = None) -> None:
    """Turn adapters of ``model`` up or down: ``weight = W + scale * scaling * lora_B @ lora_A``.

    With a scale of 1 an adapter is as trained, with 0 the layers compute the base exactly. It is
    any finite number. :func:`.merge.merge_lora` merges adapters at their scales, while
    :func:`.adapter.save_adapter` writes them as trained.
    """
    if not is_number(scale):
        raise ValueError(f"scale={scale}: expected a finite number")
    for adapter in named_adapters(model, name):
        adapter.scale = scale


def fold_lora_scale(model: nn.Module, name: str | None = None) -> None:
    """Make the scale of adapters a part of them: afterwards they are as trained at a scale of 1.

    ``alpha`` and the scaling are multiplied by it, so :func:`.adapter.save_adapter` writes the
    scaled adapter, and PEFT loads it so. The network computes what it did, to rounding.
    """
    named_adapters(model, name)
    for weight in lora_weights(model).values():
        for adapter in weight.adapters:
            if name in (None, adapter.name):
                fold_scale(adapter, weight.below(adapter))


@contextmanager
def lora_disabled(model: nn.Module, name: str | None = None) -> Iterator[None]:
    """Inside the ``with`` block ``model`` is its base; afterwards each adapter is as it was.

    The base is in eval mode; see :func:`.frozen.freeze_base`. To compare it bit for bit with the
    network before :func:`add_lora`, compute both under ``torch.no_grad()``: in grad mode, torch's
    attention takes another path, with other rounding, once its weights are frozen.
    """
    before = [(adapter, adapter.enabled) for adapter in named_adapters(model, name)]
    set_lora_enabled(model, False, name)
    try:
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled
