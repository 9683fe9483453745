"""LoRA on one layer: a low-rank update of its weight, which the forward pass never builds.

A linear layer with the frozen weight ``W``, shape (out_features, in_features), computes

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with ``A = lora_A``, shape (rank, in_features), and ``B = lora_B``, shape (out_features, rank). A
plain layer computes the same with the weight ``W + scaling * B A``. In a 2-d convolution ``lora_A``
takes the place of the weight, with the shape (rank, in_channels, height, width). A 1x1 convolution
with ``lora_B``, shape (out_channels, rank, 1, 1), follows.

``layer.weight`` reads as that sum. The layer itself computes with :func:`linear_forward` or
:func:`adapted_forward`, which :meth:`.weight.Weight.put` gives it in place of its own forward.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d  # the layers that compute with the factors


class LoRAParametrization(nn.Module):
    """Maps the frozen weight ``W`` to ``W + scale * scaling * lora_B @ lora_A``.

    It is registered with :mod:`torch.nn.utils.parametrize`. Only ``lora_A`` and ``lora_B`` learn.
    ``lora_B`` starts at zero, so at first the layer computes what it did before (Hu et al. 2021,
    section 4.1). ``lora_A`` starts at random.

    Args:
        weight: the weight to adapt, of two or more dimensions; it is not kept.
        rank: the inner dimension, an integer >= 1.
        alpha: sets the scaling, ``alpha / rank``; finite and > 0.
        init: ``gaussian``, ``lora_A ~ N(0, init_std^2)``, as in that paper; or ``kaiming``,
            ``lora_A ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))``, as in its authors' code and PEFT.
        init_std: the standard deviation of ``gaussian``.
        use_rslora: scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv:2312.03732).
        dropout: probability of zeroing each input of the adapter while training.

    Attributes:
        lora_A: shape (rank, *weight.shape[1:]).
        lora_B: shape (weight.shape[0], rank), and a 1 for each further dimension of ``weight``.
        name: tells it from other adapters on the same network.
        scale: a factor on the finished adapter: 1 as trained, 0 the base exactly.
        enabled: without it the layer computes the base exactly.

    Raises:
        ValueError: if ``rank``, ``alpha`` or ``use_rslora`` is out of range.
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int = 1,
        alpha: float = 1.0,
        init: str = "gaussian",
        init_std: float = 1.0,
        use_rslora: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank={rank}: expected an integer >= 1")
        if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha}: expected a finite number > 0")
        if not isinstance(use_rslora, bool):
            raise ValueError(f"use_rslora={use_rslora}: expected true or false")
        self.rank, self.alpha, self.use_rslora, self.dropout = rank, alpha, use_rslora, dropout
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.name, self.scale, self.enabled = "default", 1.0, True
        ones = [1] * (weight.ndim - 2)
        self.lora_A = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.lora_B = nn.Parameter(weight.new_zeros(len(weight), rank, *ones))
        self.init_factors(weight.detach(), init, init_std)

    def init_factors(self, weight: Tensor, init: str, init_std: float) -> None:
        """Give ``lora_A`` its first values; ``lora_B`` is zero."""
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_A, std=init_std)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``A`` and ``B`` of the update ``scaling * B A``."""
        return self.lora_A, self.lora_B

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of ``weight``'s shape; what ``layer.weight`` reads as."""
        if not (self.enabled and self.scale):
            return weight
        lora_A, lora_B = self.factors()
        product = (lora_B.flatten(1) @ lora_A.flatten(1)).view_as(weight)
        return weight + product * (self.scaling * self.scale)

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        """``y + scale * scaling * (x A^T) B^T``: through the factors, one after the other."""
        lora_A, lora_B = self.factors()
        x = F.dropout(x, self.dropout, self.training)
        hidden = compute(layer, x, lora_A)
        if isinstance(layer, nn.Conv2d):
            return torch.add(y, F.conv2d(hidden, lora_B), alpha=self.scaling * self.scale)
        return torch.addmm(y, hidden, lora_B.t(), alpha=self.scaling * self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, name={self.name}, scale={self.scale}"


def compute(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The output of ``layer`` for ``x``, with this weight and this bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight, bias)


def adapted_forward(layer: Layer, x: Tensor) -> Tensor:
    """``forward`` of an adapted convolution, and of a linear layer on rows of numbers."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    y = compute(layer, x, adapters.original, layer.bias)
    for adapter in adapters:
        if adapter.enabled and adapter.scale:
            y = adapter.add_update(y, x, layer)
    return y


def linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """``forward`` of an adapted linear layer: (..., in_features) to (..., out_features)."""
    y = adapted_forward(layer, x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
