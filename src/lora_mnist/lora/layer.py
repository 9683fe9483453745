"""LoRA on one layer: a low-rank update of its weight, and a forward pass that never builds it.

A linear layer with the frozen weight ``W``, shape (out_features, in_features), computes

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

(:attr:`.settings.LayerSettings.scaling`) with ``A = lora_A``, shape (rank, in_features), and
``B = lora_B``, shape (out_features, rank). A convolution does the same with a convolution to
``rank`` channels, ``lora_A`` of shape (rank, in_channels, height, width), and a 1x1 convolution
from them, ``lora_B`` of shape (out_channels, rank, 1, 1). Any other weight is adapted through the
dense sum ``W + scaling * B A``.

Papers: LoRA, arXiv:2106.09685; rank-stabilised scaling, arXiv:2312.03732.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import LayerSettings


class LoRAParametrization(nn.Module):
    """Maps the frozen weight ``W`` to ``W + scaling * lora_B @ lora_A``.

    Only ``lora_A`` and ``lora_B`` learn. ``lora_B`` starts at zero, so at first the layer computes
    what it did before (Hu et al. 2021, section 4.1). ``lora_A`` starts at random:

    - ``gaussian``: ``lora_A ~ N(0, init_std^2)``, as in that paper;
    - ``kaiming``: ``lora_A ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))``, as in its authors' code
      and in PEFT.

    Args:
        weight: the weight to adapt, of two or more dimensions; it is read for its shape, device
            and dtype, and not kept.
        settings: rank, scaling, start and dropout.
        name: tells the adapter from others on the same network.

    Attributes:
        lora_A: shape (rank, *weight.shape[1:]).
        lora_B: shape (weight.shape[0], rank), and a 1 for each further dimension of ``weight``.
        scaling: the factor of the update, ``alpha / rank``, or ``alpha / sqrt(rank)`` with
            ``use_rslora``.
        enabled: whether the update is applied. Without it the layer computes the base exactly.
        was_trainable: whether ``weight`` required a gradient before.
    """

    def __init__(self, weight: Tensor, settings: LayerSettings, name: str = "default") -> None:
        super().__init__()
        self.rank = settings.rank
        self.alpha = settings.alpha
        self.use_rslora = settings.use_rslora
        self.scaling = settings.scaling
        self.dropout = settings.dropout
        self.name = name
        self.enabled = True
        self.was_trainable = weight.requires_grad
        rows, *columns = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(self.rank, *columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, self.rank, *[1] * (weight.ndim - 2)))
        self.start(weight.detach(), settings)

    def start(self, weight: Tensor, settings: LayerSettings) -> None:
        """Give ``lora_A`` its first values; ``lora_B`` is zero."""
        if settings.init == "gaussian":
            nn.init.normal_(self.lora_A, std=settings.init_std)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of ``weight``'s shape; what ``layer.weight`` reads as."""
        if not self.enabled:
            # As before it was frozen: torch's attention and recurrent layers take another path,
            # and round otherwise, where a weight requires no gradient.
            return weight.detach().requires_grad_() if self.was_trainable else weight
        return weight + self.product().view_as(weight) * self.scaling

    def product(self) -> Tensor:
        """``lora_B @ lora_A`` as a matrix, shape (weight.shape[0], weight[0].numel())."""
        return self.lora_B.flatten(1) @ self.lora_A.flatten(1)

    def add_update(
        self, output: Tensor, inputs: Tensor, operation: Callable[..., Tensor]
    ) -> Tensor:
        """``output`` plus what the adapter adds to it, from the factors alone.

        Args:
            output: what the layer computed so far: (rows, out_features), or (..., out_channels,
                height, width).
            inputs: what the layer was given: (rows, in_features), or (..., in_channels, height,
                width).
            operation: what the layer does with inputs, a weight and a bias or ``None``.

        Returns:
            A tensor of ``output``'s shape.
        """
        if not self.enabled:
            return output
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        hidden = operation(inputs, self.lora_A, None)
        if hidden.ndim == 2:  # one kernel instead of two
            return torch.addmm(output, hidden, self.lora_B.t(), alpha=self.scaling)
        return torch.add(output, expand(hidden, self.lora_B), alpha=self.scaling)

    def extra_repr(self) -> str:
        return f"name={self.name}, rank={self.rank}, alpha={self.alpha}, enabled={self.enabled}"


def expand(hidden: Tensor, lora_B: Tensor) -> Tensor:
    """From ``rank`` features or channels to those of the layer's output."""
    return F.linear(hidden, lora_B) if lora_B.ndim == 2 else F.conv2d(hidden, lora_B)


def linear_forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """``nn.Linear.forward`` of an adapted layer: (..., in_features) to (..., out_features)."""
    if inputs.ndim == 2:
        return _factored(layer, inputs, F.linear)
    output = _factored(layer, inputs.reshape(-1, inputs.shape[-1]), F.linear)
    return output.reshape(*inputs.shape[:-1], output.shape[-1])


def conv2d_forward(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """``nn.Conv2d.forward`` of an adapted layer: (..., in_channels, height, width) to output."""
    return _factored(layer, inputs, layer._conv_forward)


def _factored(
    layer: nn.Linear | nn.Conv2d, inputs: Tensor, operation: Callable[..., Tensor]
) -> Tensor:
    """The base's output, and on it what each adapter adds."""
    steps: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    adapters = list(steps)
    if not all(isinstance(adapter, LoRAParametrization) for adapter in adapters):
        # Somebody else's parametrization stands on the same weight: only the dense one is right.
        return operation(inputs, layer.weight, layer.bias)
    of_base = operation  # with every adapter off: the base, to the last bit
    if any(adapter.enabled for adapter in adapters):
        of_base = getattr(steps, "frozen_operation", operation)
    output = of_base(inputs, steps.original, layer.bias)
    for adapter in adapters:
        output = adapter.add_update(output, inputs, operation)
    return output
