"""LoRA in plain PyTorch: low-rank adapters on the linear layers of any network.

Every adapted layer computes, from the factors alone (Hu et al. 2021, section 4.1),

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with the frozen weight ``W`` of shape (out_features, in_features), ``lora_A`` of shape
(rank, in_features) and ``lora_B`` of shape (out_features, rank). The adapter is registered with
:mod:`torch.nn.utils.parametrize`, so ``layer.weight`` reads as the effective weight
``W + scaling * lora_B @ lora_A``, ``layer.parametrizations.weight.original`` is ``W``, and
``layer.parametrizations.weight[0]`` is the :class:`LoRAParametrization`; a second adapter stacks
as ``[1]``.

Paper: "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Where LoRA's tensors and the frozen weight stand in the state_dict of an adapted network.
_LORA_KEY = re.compile(r"(^|\.)parametrizations\.weight\.\d+\.lora_[AB]$")
_ORIGINAL_KEY = re.compile(r"(^|\.)parametrizations\.weight\.original$")


class LoRAParametrization(nn.Module):
    """One adapter of one weight: maps ``W`` to ``W + scaling * lora_B @ lora_A``.

    ``lora_A ~ N(0, init_std^2)`` and ``lora_B = 0``, so the update is zero when training begins
    (Hu et al. 2021, section 4.1).

    Args:
        weight: the weight to adapt, shape (out_features, in_features); gives device and dtype.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: numerator of ``scaling = alpha / rank``, finite and > 0.
        init_std: standard deviation of ``lora_A`` at the start, finite and > 0.

    Attributes:
        enabled: whether the update is applied; see :func:`lora_disabled`.

    Raises:
        ValueError: if ``rank``, ``alpha`` or ``init_std`` is out of range.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, init_std: float) -> None:
        super().__init__()
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank={rank}: expected an integer >= 1")
        _check_positive("alpha", alpha)
        _check_positive("init_std", init_std)
        out_features, in_features = weight.shape
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / rank
        self.enabled = True
        self.lora_A = nn.Parameter(weight.new_empty(rank, in_features).normal_(std=init_std))
        self.lora_B = nn.Parameter(weight.new_zeros(out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, (out_features, in_features). Dense: read it, do not train on it."""
        if not self.enabled:
            return weight
        return weight + (self.lora_B @ self.lora_A) * self.scaling

    def add_update(self, output: Tensor, inputs: Tensor) -> Tensor:
        """``output + scaling * (inputs A^T) B^T`` without ever forming ``B A``.

        Args:
            output: what the layer computed so far, shape (rows, out_features).
            inputs: what the layer was given, shape (rows, in_features).
        """
        if not self.enabled:
            return output
        hidden = F.linear(inputs, self.lora_A)
        return torch.addmm(output, hidden, self.lora_B.t(), alpha=self.scaling)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, enabled={self.enabled}"


def _check_positive(name: str, value: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}: expected a finite number > 0")


def _factored_forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """``nn.Linear.forward`` of an adapted layer, from the factors."""
    steps = _parametrizations(layer)
    if not all(isinstance(step, LoRAParametrization) for step in steps):
        # Somebody else's parametrization stands on the same weight: only the dense one is right.
        return F.linear(inputs, layer.weight, layer.bias)
    rows = inputs.reshape(-1, inputs.shape[-1])
    output = F.linear(rows, steps.original, layer.bias)
    for adapter in steps:
        output = adapter.add_update(output, rows)
    return output.reshape(*inputs.shape[:-1], output.shape[-1])


def add_lora(
    model: nn.Module,
    rank: int = 1,
    alpha: float = 1.0,
    targets: str = "linear[0-9]",
    init_std: float = 1.0,
) -> nn.Module:
    """Put a trainable LoRA adapter on chosen linear layers and freeze everything else.

    Only weights are adapted; every bias is frozen (Hu et al. 2021, section 4.2). Called again, it
    stacks a second adapter on the first, which is then frozen too.

    Args:
        model: any network; changed in place.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: the update is scaled by ``alpha / rank``; finite and > 0.
        targets: regular expression; the ``nn.Linear`` modules whose full name it matches get an
            adapter.
        init_std: ``lora_A`` starts as N(0, init_std^2); finite and > 0.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if a number is out of range, or if ``targets`` is no regular expression or
            matches no linear layer. ``model`` is then as it was.
    """
    layers = _target_layers(model, targets)
    adapters = [
        LoRAParametrization(_frozen_weight(layer), rank, alpha, init_std) for layer in layers
    ]
    model.requires_grad_(False)
    for layer, adapter in zip(layers, adapters, strict=True):
        # unsafe: torch would build the dense product, to check a shape right by construction.
        parametrize.register_parametrization(layer, "weight", adapter, unsafe=True)
        # torch gives each parametrized module a class of its own, so this forward is this layer's
        # alone; it survives deepcopy, and is gone when the parametrization is removed. A subclass
        # that computes something else keeps its forward and reads the dense weight.
        if type(layer).forward is nn.Linear.forward:
            type(layer).forward = _factored_forward  # type: ignore[method-assign,assignment]
    return model


def _target_layers(model: nn.Module, targets: str) -> list[nn.Linear]:
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    try:
        pattern = re.compile(targets)
    except (re.error, TypeError) as error:
        raise ValueError(f"targets={targets}: expected a regular expression ({error})") from error
    layers = [layer for name, layer in linear.items() if pattern.fullmatch(name)]
    if not layers:
        names = ", ".join(linear) or "none"
        raise ValueError(f"targets={targets}: expected to match a linear layer, of: {names}")
    return layers


def _frozen_weight(layer: nn.Linear) -> Tensor:
    """The weight without any adapter; reading ``.weight`` would build the dense product."""
    is_adapted = parametrize.is_parametrized(layer, "weight")
    weight: Tensor = _parametrizations(layer).original if is_adapted else layer.weight
    return weight


def _parametrizations(layer: nn.Linear) -> Any:
    """What torch has registered on the weight, in order; typed as nothing in particular there."""
    return layer.parametrizations.weight  # type: ignore[union-attr]


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of every layer of ``model`` that carries LoRA, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and lora_adapters(module):
            yield name, module


def lora_adapters(layer: nn.Linear) -> list[LoRAParametrization]:
    """The adapters on one layer, first registered first; empty where it carries none."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return [step for step in _parametrizations(layer) if isinstance(step, LoRAParametrization)]


def _all_adapters(model: nn.Module) -> list[LoRAParametrization]:
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def has_lora(model: nn.Module) -> bool:
    """Whether any layer of ``model`` carries LoRA."""
    return bool(_all_adapters(model))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every ``lora_A`` and ``lora_B`` of ``model``, and nothing else."""
    for adapter in _all_adapters(model):
        yield from adapter.parameters()


def set_lora_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every adapter of ``model`` on or off; off, the network computes the base exactly.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA.
    """
    for _, layer in _require_lora(model):
        for adapter in lora_adapters(layer):
            adapter.enabled = enabled


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block ``model`` is its base; afterwards each adapter is as it was.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA.
    """
    before = [(adapter, adapter.enabled) for adapter in _all_adapters(model)]
    set_lora_enabled(model, False)
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
        model: network whose linear layers carry LoRA (see :func:`add_lora`); changed in place.
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
        model: network whose linear layers carry LoRA; changed in place. Its parameters stay
            frozen.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or if a layer's weight carries another
            parametrization too. ``model`` is then as it was.
    """
    layers = _require_lora(model)
    for name, layer in layers:
        if len(lora_adapters(layer)) < len(_parametrizations(layer)):
            raise ValueError(f"{name}.weight carries another parametrization beside LoRA")
    for _, layer in layers:
        _remove(layer, leave_parametrized=False)
    return model


def _remove(layer: nn.Linear, leave_parametrized: bool) -> None:
    # A deep copy shares the class that torch made for the layer, and torch removes the
    # parametrization by deleting from that class: without one of its own, the twin would break.
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized)


def _require_lora(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    layers = list(lora_layers(model))
    if not layers:
        raise ValueError("no layer of the model carries LoRA")
    return layers


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The tensors share memory with ``model``, as those of ``state_dict`` do.
    """
    return {
        _ORIGINAL_KEY.sub(r"\1weight", key): tensor
        for key, tensor in model.state_dict().items()
        if not _LORA_KEY.search(key)
    }
