"""LoRA in plain PyTorch: low-rank adapters on the layers of any network.

Every adapted linear layer computes, from the factors alone (Hu et al. 2021, section 4.1),

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with the frozen weight ``W`` of shape (out_features, in_features), ``lora_A`` of shape
(rank, in_features) and ``lora_B`` of shape (out_features, rank); a 2-d convolution does the same
with a convolution to ``rank`` channels and a 1x1 convolution from them. The adapter is registered
with :mod:`torch.nn.utils.parametrize`, so ``layer.weight`` reads as the effective weight
``W + scaling * lora_B @ lora_A``, ``layer.parametrizations.weight.original`` is ``W``, and
``layer.parametrizations.weight[0]`` is the :class:`LoRAParametrization`; a second adapter stacks
as ``[1]``.

Paper: "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_mnist.parametrization import (
    FACTORED_FORWARDS,
    Layer,
    LoRAParametrization,
    parametrizations,
)

# Where an adapter's tensors and the frozen weight stand in the state_dict of an adapted network.
_LORA_KEY = re.compile(r"(^|\.)parametrizations\.weight\.\d+\.(lora|start)_[AB]$")
_ORIGINAL_KEY = re.compile(r"(^|\.)parametrizations\.weight\.original$")


def add_lora(
    model: nn.Module,
    rank: int = 1,
    alpha: float = 1.0,
    targets: str = "linear[0-9]",
    init: str = "gaussian",
    init_std: float = 1.0,
    use_rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    name: str | None = None,
) -> nn.Module:
    """Put a trainable LoRA adapter on chosen layers and freeze everything else.

    Only weights are adapted; every bias is frozen (Hu et al. 2021, section 4.2). Called again, it
    stacks a second adapter on the first, which is then frozen too.

    Args:
        model: any network; changed in place.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: the update is scaled by ``alpha / rank``; finite and > 0.
        targets: regular expression; the ``nn.Linear`` and ``nn.Conv2d`` modules whose full name it
            matches get an adapter.
        init: how the adapter starts: ``gaussian``, ``kaiming`` or ``pissa``; see
            :class:`LoRAParametrization`.
        init_std: with ``gaussian``, ``lora_A`` starts as N(0, init_std^2); finite and > 0.
        use_rslora: scale by ``alpha / sqrt(rank)`` instead.
        dropout: probability of zeroing each input of the adapter while training, in [0, 1).
        rank_pattern: ranks of single layers. As in PEFT, a key is a regular expression for the end
            of a layer's name, from its start or from a dot on, and the first that matches holds.
        alpha_pattern: alphas of single layers, in the same way.
        name: tells the adapter from others on ``model``; by default ``default``, then
            ``default2`` and so on.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if an argument is out of range, if a regular expression is none or matches no
            layer, if a layer cannot be adapted, or if ``name`` is taken. ``model`` is then as it
            was.
    """
    layers = _target_layers(model, targets)
    ranks = _by_pattern("rank_pattern", rank_pattern, list(layers), rank)
    alphas = _by_pattern("alpha_pattern", alpha_pattern, list(layers), alpha)
    name = _free_name(model, name)
    adapters = {
        layer: LoRAParametrization(
            base_weight(layer),
            ranks[key],
            alphas[key],
            init=init,
            init_std=init_std,
            use_rslora=use_rslora,
            dropout=dropout,
            name=name,
        )
        for key, layer in layers.items()
    }
    if dropout:
        _require_factored(layers)
    model.requires_grad_(False)
    for layer, adapter in adapters.items():
        # unsafe: torch would build the dense product, to check a shape right by construction.
        parametrize.register_parametrization(layer, "weight", adapter, unsafe=True)
        # torch gives each parametrized module a class of its own, so this forward is this layer's
        # alone; it survives deepcopy, and is gone when the parametrization is removed. A subclass
        # that computes something else keeps its forward and reads the dense weight.
        for kind, forward in FACTORED_FORWARDS.items():
            if type(layer).forward is kind.forward:
                type(layer).forward = forward  # type: ignore[method-assign,assignment]
    return model


def _target_layers(model: nn.Module, targets: str) -> dict[str, Layer]:
    adaptable = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
    pattern = _compiled("targets", targets)
    layers = {name: layer for name, layer in adaptable.items() if pattern.fullmatch(name)}
    if not layers:
        names = ", ".join(adaptable) or "none"
        raise ValueError(
            f"targets={targets}: expected to match a linear or conv2d layer, of: {names}"
        )
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise ValueError(
                f"targets={targets}: {name} has groups={layer.groups}; expected groups=1"
            )
    return layers


def _compiled(argument: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument}={expression}: expected a regular expression ({error})"
        ) from error


def pattern_value(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """What ``rank_pattern`` or ``alpha_pattern`` says of the layer ``name``, as PEFT reads it."""
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: list[str], default: Any
) -> dict[str, Any]:
    """The value of each layer of ``names``."""
    if not isinstance(pattern, Mapping | None):
        raise ValueError(f"{argument}={pattern}: expected a mapping from layers to values, or null")
    for key, value in (pattern or {}).items():
        _compiled(argument, key)
        if not any(pattern_value({key: True}, name, False) for name in names):
            targets = ", ".join(names)
            raise ValueError(f"{argument}={{{key}: {value}}}: expected a layer of: {targets}")
    return {name: pattern_value(pattern or {}, name, default) for name in names}


def _free_name(model: nn.Module, name: str | None) -> str:
    taken = lora_names(model)
    if name in taken:
        raise ValueError(f"name={name}: expected another name than {', '.join(taken)}")
    if name is None:
        numbered = (f"default{number}" for number in range(2, len(taken) + 2))
        return next(free for free in ("default", *numbered) if free not in taken)
    return name


def _require_factored(layers: Mapping[str, Layer]) -> None:
    """Dropout acts on the adapter's input, which a layer that reads its weight never shows."""
    known = {*FACTORED_FORWARDS.values(), *(kind.forward for kind in FACTORED_FORWARDS)}
    if dense := [name for name, layer in layers.items() if type(layer).forward not in known]:
        raise ValueError(f"dropout: {dense[0]} has a forward of its own; expected dropout=0")


def base_weight(layer: Layer) -> Tensor:
    """The weight without any adapter; reading ``.weight`` would build the dense product."""
    is_adapted = parametrize.is_parametrized(layer, "weight")
    weight: Tensor = parametrizations(layer).original if is_adapted else layer.weight
    return weight


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Name and module of every layer of ``model`` that carries LoRA, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, Layer) and lora_adapters(module):
            yield name, module


def lora_adapters(layer: Layer) -> list[LoRAParametrization]:
    """The adapters on one layer, first registered first; empty where it carries none."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return [step for step in parametrizations(layer) if isinstance(step, LoRAParametrization)]


def _all_adapters(model: nn.Module) -> list[LoRAParametrization]:
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def has_lora(model: nn.Module) -> bool:
    """Whether any layer of ``model`` carries LoRA."""
    return bool(_all_adapters(model))


def lora_names(model: nn.Module) -> list[str]:
    """The names of the adapters on ``model``, as its layers bring them; empty without LoRA."""
    return list(dict.fromkeys(adapter.name for adapter in _all_adapters(model)))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every ``lora_A`` and ``lora_B`` of ``model``, and nothing else."""
    for adapter in _all_adapters(model):
        yield from adapter.parameters()


def _named_adapters(model: nn.Module, name: str | None) -> list[LoRAParametrization]:
    _require_lora(model)
    adapters = [a for a in _all_adapters(model) if name in (None, a.name)]
    if not adapters:
        raise ValueError(f"name={name}: expected one of {', '.join(lora_names(model))}")
    return adapters


def set_lora_enabled(model: nn.Module, enabled: bool, name: str | None = None) -> None:
    """Switch adapters of ``model`` on or off; with all off, it computes the base exactly.

    Args:
        model: network whose layers carry LoRA.
        enabled: on or off.
        name: switch this adapter alone; ``None`` for every one.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or no adapter has this name.
    """
    for adapter in _named_adapters(model, name):
        adapter.enabled = enabled


@contextmanager
def lora_disabled(model: nn.Module, name: str | None = None) -> Iterator[None]:
    """Inside the ``with`` block ``model`` is its base; afterwards each adapter is as it was.

    Args:
        model: network whose layers carry LoRA.
        name: switch this adapter alone off; ``None`` for every one.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or no adapter has this name.
    """
    before = [(adapter, adapter.enabled) for adapter in _named_adapters(model, name)]
    set_lora_enabled(model, False, name)
    try:
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's weight and drop the parametrization.

    Afterwards ``model`` is a plain network that computes what the adapted one did:
    ``weight = W + scaling * lora_B @ lora_A`` (Hu et al. 2021, section 4.1), to floating-point
    rounding. A switched-off adapter adds nothing before, and so nothing after.

    Args:
        model: network whose layers carry LoRA (see :func:`add_lora`); changed in place.
            Its parameters stay frozen.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA.
    """
    for _, layer in _require_lora(model):
        _remove(layer, leave_parametrized=True)
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Throw every adapter away: ``model`` is the plain base again, bit for bit.

    Args:
        model: network whose layers carry LoRA; changed in place. Its parameters stay
            frozen.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or if a layer's weight carries another
            parametrization too. ``model`` is then as it was.
    """
    layers = _require_lora(model)
    for name, layer in layers:
        if len(lora_adapters(layer)) < len(parametrizations(layer)):
            raise ValueError(f"{name}.weight carries another parametrization beside LoRA")
    for _, layer in layers:
        _remove(layer, leave_parametrized=False)
    return model


def _remove(layer: Layer, leave_parametrized: bool) -> None:
    # A deep copy shares the class that torch made for the layer, and torch removes the
    # parametrization by deleting from that class: without one of its own, the twin would break.
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized)


def _require_lora(model: nn.Module) -> list[tuple[str, Layer]]:
    layers = list(lora_layers(model))
    if not layers:
        raise ValueError("no layer of the model carries LoRA")
    return layers


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The tensors share memory with ``model``, as those of ``state_dict`` do. See also
    :func:`lora_state_dict`.
    """
    return {
        _ORIGINAL_KEY.sub(r"\1weight", key): tensor
        for key, tensor in model.state_dict().items()
        if not _LORA_KEY.search(key)
    }


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of ``model.state_dict()`` that :func:`base_state_dict` leaves out."""
    state = model.state_dict()
    return {key: state[key] for key in state if _LORA_KEY.search(key)}
