"""LoRA on a whole network: put adapters on its layers, switch, scale, merge and remove them.

An adapter is registered with :mod:`torch.nn.utils.parametrize`: ``layer.weight`` then reads as the
effective weight ``W + scaling * lora_B @ lora_A``, ``layer.parametrizations.weight.original`` is
the frozen ``W``, and ``layer.parametrizations.weight[0]`` the :class:`.layer.LoRAParametrization`;
a second adapter stacks as ``[1]``.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import dora, pissa
from .errors import ArgumentError, is_number, require
from .layer import Adapter, LoRAParametrization
from .offset import Offset, bias_name
from .point import BASE, Point
from .target_modules import find_unadapted, layers_to_adapt, resolve_pattern
from .weight import (
    adapted_weights,
    adapters_on,
    float_parameters,
    lora_adapters,
    point_fields,
    set_parameter,
)

log = logging.getLogger(__name__)

#: The kinds of adapters, by the values of ``init`` that choose them.
KINDS: dict[str, type[LoRAParametrization]] = {
    "gaussian": LoRAParametrization,
    "kaiming": LoRAParametrization,
    "pissa": pissa.PiSSAParametrization,
    "dora": dora.DoRAParametrization,
}


def add_lora(
    model: nn.Module,
    rank: int = 1,
    alpha: float = 1.0,
    target_modules: str | Collection[str] = "all",
    init: str = "gaussian",
    init_std: float = 1.0,
    use_rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
) -> nn.Module:
    """Put a trainable LoRA adapter on chosen layers and freeze everything else.

    Only weights are adapted; every bias is frozen (Hu et al. 2021, section 4.2). Called again, it
    stacks a second adapter on the first, which is then frozen too. The base stays in eval mode
    whatever ``model.train()`` says, so its statistics stay as they are: a forward pass in train
    mode sets ``model.training`` to ``False``; the adapters stay in train mode.

    Args:
        model: any network; changed in place, and returned.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: the update is scaled by ``alpha / rank``; finite and > 0.
        target_modules: the layers that get an adapter, as in PEFT: a regular expression for whole
            names, a list of names or of ends of names from a dot on, ``all-linear`` for every
            ``nn.Linear``, or ``all`` for every ``nn.Conv2d`` with ``groups=1`` too. Other weights
            of two or more dimensions are chosen by name: ``["all", "in_proj_weight"]``.
        init: how the adapter starts, a key of ``KINDS``: see :class:`.layer.LoRAParametrization`
            and the classes of the other kinds.
        init_std: with ``gaussian``, ``lora_A`` starts as N(0, init_std^2); > 0.
        use_rslora: scale by ``alpha / sqrt(rank)`` instead.
        dropout: probability of zeroing each input of the adapter while training, in [0, 1). Only
            ``nn.Linear`` and ``nn.Conv2d`` with ``groups=1`` support it.
        rank_pattern: ranks of single layers, by name or by the end of a name from a dot on.

    Raises:
        ValueError: if an argument is out of range or names no layer, or if a layer cannot be
            adapted. ``model`` is then as it was.
    """
    require(init in KINDS, "init", init, f"one of {', '.join(KINDS)}")
    is_share = is_number(dropout) and 0 <= dropout < 1
    require(is_share, "dropout", dropout, "a number from 0 to below 1")
    kind, targets = KINDS[init], layers_to_adapt(model, target_modules)
    if dropout and not any(kind.is_factored and w.factored_forward for w in targets.values()):
        raise ArgumentError("dropout", dropout, "expected 0, since no chosen layer supports it")
    ranks = resolve_pattern("rank_pattern", rank_pattern, targets, rank)
    adapters = {}
    for layer, weight in targets.items():
        # A kind that reads the dense weight starts from it, earlier adapters included.
        start = weight.original if kind.is_factored else getattr(weight.module, weight.attribute)
        options = (ranks[layer], alpha, init, init_std, use_rslora, dropout)
        adapters[layer] = kind(start, *options)
    attach(model, adapters)
    if target_modules == "all":
        share, names = find_unadapted(model)
        if share >= 0.1:
            message = "target_modules=all omits %.0f%% of the weights; the largest are: %s"
            log.warning(message, 100 * share, ", ".join(names[:5]))
    return model


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of all adapters, such as ``lora_A`` and ``lora_B`` of each layer."""
    for adapter in lora_adapters(model):
        yield from adapter.parameters()


def set_lora_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch the adapters of ``model`` on or off; with all off, it computes the base exactly.

    ``ValueError`` if no layer carries LoRA, or the adapters are merged.
    """
    for adapter in require_adapters(model):
        adapter.enabled = enabled


def set_lora_scale(model: nn.Module, scale: float) -> None:
    """Set the scale of the adapters of ``model``.

    With LoRA ``weight = W + scale * scaling * lora_B @ lora_A``. At 1 an adapter is as trained, at
    0 the layers compute the base exactly, whatever scale it had before. It is any finite number.
    Merging applies adapters at their scales, and a saved adapter keeps its scale. ``ValueError`` if
    no layer carries LoRA, the adapters are merged, or the scale is not finite.
    """
    _set_point(model, scale=scale)


def add_offset(model: nn.Module, layer: str, offset: Offset) -> nn.Module:
    """Put ``offset``, at 0, on the bias of ``layer``, the last one, beside LoRA or alone."""
    name, is_alone = bias_name(layer), not adapters_on(model)
    offset.point = lora_point(model)._replace(offset=0.0)
    if is_alone:
        attach(model, {name: offset})
    else:  # attach would freeze LoRA
        weight = float_parameters(model)[name]
        set_parameter(weight, weight.original, [*weight.adapters, offset.to(weight.original)])
    return model


def set_lora_offset(model: nn.Module, offset: float) -> None:
    """Add ``offset * direction`` to the logits of ``model``: see :class:`.offset.Offset`.

    With 0 it adds nothing. The scale does not change it. ``ValueError`` if no layer carries LoRA,
    the adapters are merged, or have no offset, or ``offset`` is not finite.
    """
    _set_point(model, offset=offset)


def set_lora_point(model: nn.Module, point: Point) -> None:
    """Set scale and offset at once: see :func:`set_lora_scale` and :func:`set_lora_offset`."""
    _set_point(model, **point._asdict())


def _set_point(model: nn.Module, **values: float) -> None:
    """Set some fields of the point of each adapter."""
    adapters, fields = require_adapters(model), point_fields(model)
    for name, value in values.items():
        require(is_number(value), name, value, "a finite number")
        neutral = getattr(BASE, name)
        expected = f"{neutral:g}, since the adapter has no {name}"
        require(name in fields or value == neutral, name, value, expected)
    for adapter in adapters:
        adapter.point = adapter.point._replace(**values)


def lora_point(model: nn.Module) -> Point:
    """Return the point of the adapters, ``BASE`` without any. Raise ValueError if they differ."""
    points = {adapter.point for adapter in adapters_on(model)}
    if len(points) > 1:
        raise ValueError(f"the adapters stand at {sorted(points)}; expected one point for all")
    return points.pop() if points else BASE


@contextmanager
def lora_at(model: nn.Module, point: Point | None) -> Iterator[None]:
    """Put each adapter of ``model`` at ``point`` inside the block; ``None`` changes nothing."""
    before = [(adapter, adapter.point) for adapter in adapters_on(model)]
    if point is not None:
        for adapter, _ in before:
            adapter.point = point
    try:
        yield
    finally:
        for adapter, its_point in before:
            adapter.point = its_point


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Make ``model`` its base inside the block; afterwards each adapter is as before.

    The base is in eval mode. To compare it bit for bit with the network before :func:`add_lora`,
    compute both under ``torch.no_grad()``: in grad mode, torch's attention takes another path, with
    other rounding, once its weights are frozen. Both need the same memory format: convolutions in
    ``torch.channels_last``, which the commands use, round otherwise (logits by up to 6e-6).
    ``ValueError`` if no layer carries LoRA, or the adapters are merged.
    """
    require_adapters(model)
    with lora_at(model, BASE):
        yield


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's weight and drop the parametrization.

    Afterwards ``model`` is a plain network that computes what the adapted one did:
    ``weight = W + scaling * lora_B @ lora_A`` (Hu et al. 2021, section 4.1), to floating-point
    rounding. A switched-off adapter adds nothing. The parameters stay frozen.

    The weights before the merge are kept in ``model.lora_merged``, for :func:`unmerge_lora`, and go
    with ``model`` into copies and pickles. ``del model.lora_merged`` gives the memory back.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or it is merged already.
    """
    require_adapters(model)
    registered: Any = {}
    for layer, weight in adapted_weights(model).items():
        registered[layer] = weight.module.parametrizations[weight.attribute]  # type: ignore[index]
        # A copy, also where an adapter is off: the kept base shares no memory with the network.
        effective = getattr(weight.module, weight.attribute).detach().clone()
        set_parameter(weight, nn.Parameter(effective, requires_grad=False))
    release_base(model)
    model.lora_merged = registered
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo :func:`merge_lora`: base and adapters are as before, bit for bit.

    The base is the one that was kept, not ``weight - scaling * lora_B @ lora_A``, which rounding
    would make another. Changes made to a merged weight are lost. ``model`` is changed in place, and
    returned. ``ValueError`` if no adapter is merged.
    """
    if not hasattr(model, "lora_merged"):
        raise ValueError("no adapter of the model is merged")
    registered: Any = model.lora_merged
    weights = float_parameters(model.requires_grad_(False))
    for layer, before in registered.items():
        before.to(weights[layer].original.device)
        set_parameter(weights[layer], before.original, list(before))
    for adapter in adapters_on(model):
        adapter.train(model.training)
    keep_in_eval_mode(model)
    del model.lora_merged
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Remove all adapters, merged ones too: ``model`` is the plain base again, bit for bit.

    Its parameters are still frozen. It is changed in place, and returned. ``ValueError`` if no
    layer carries LoRA.
    """
    if hasattr(model, "lora_merged"):
        unmerge_lora(model)
    require_adapters(model)
    for weight in adapted_weights(model).values():
        set_parameter(weight, weight.original)
    release_base(model)
    return model


def require_adapters(model: nn.Module) -> list[Adapter]:
    """Return the adapters of ``model``; raise ValueError if there are none, or all are merged."""
    if hasattr(model, "lora_merged"):
        raise ValueError("the adapters are merged; expected unmerge_lora(model) first")
    adapters = adapters_on(model)
    if not adapters:
        raise ValueError("no layer of the model carries LoRA")
    return adapters


def attach(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Put ``adapters`` on the weights of these names, if all fit, and freeze everything else."""
    weights = float_parameters(model)
    for layer, adapter in adapters.items():
        weight = weights[layer]
        sharing = [other for other, w in weights.items() if w.original is weight.original]
        if len(sharing) > 1:
            raise ValueError(
                f"target_modules: {' and '.join(sharing)} share one weight, which merging would "
                "untie; expected none of them"
            )
        if isinstance(adapter, LoRAParametrization) and not adapter.peft_names(weight.module):
            kind, module = type(adapter).__name__, type(weight.module).__name__
            raise ArgumentError("target_modules", layer, f"{kind} takes no weight of {module}")
        if weight.others:
            has = f"has {type(weight.others[0]).__name__} on its {weight.attribute}"
            remedy = f"{parametrize.__name__}.remove_parametrizations first"
            raise ValueError(f"{layer}: {has}; expected {remedy}")
        if not weight.original.is_contiguous():  # channels last, so no step converts the factors
            adapter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        adapter.to(weight.original)
    if not hasattr(model, "lora_hooks"):
        keep_in_eval_mode(model)
    if hasattr(model, "lora_merged"):
        del model.lora_merged  # a merged network is the base of this adapter
    model.requires_grad_(False)
    for layer, adapter in adapters.items():
        weight = weights[layer]
        set_parameter(weight, weight.original, [*weight.adapters, adapter.train(model.training)])


def keep_in_eval_mode(model: nn.Module) -> None:
    """Put the base back in eval mode before each forward pass, also after ``model.train()``."""
    hooks: Any = []
    for module in model.modules():
        # A module with buffers gets a hook of its own, in case it is called alone. Not every layer
        # does: a hook in nn.TransformerEncoderLayer keeps it from the base's fast path.
        has_buffers = next(module.buffers(recurse=False), None) is not None
        if module is model or (has_buffers and not isinstance(module, Adapter)):
            hooks.append(module.register_forward_pre_hook(_base_to_eval))
    model.lora_hooks = hooks


def _base_to_eval(root: nn.Module, inputs: Any) -> None:
    """Put the base into eval mode, as a hook of ``root``; adapters keep their mode."""
    if root.training:
        for module in root.modules():
            if not isinstance(module, Adapter):
                module.training = False


def release_base(model: nn.Module) -> None:
    """Let ``model.train()`` reach the base again."""
    for module in model.modules():
        if hasattr(module, "lora_hooks"):
            hooks: Any = module.lora_hooks
            for hook in hooks:
                hook.remove()
            del module.lora_hooks
