"""LoRA on one layer: a low-rank update of its weight, which the forward pass never builds.

A linear layer with the frozen weight ``W``, shape (out_features, in_features), computes

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with ``A = lora_A``, shape (rank, in_features), and ``B = lora_B``, shape (out_features, rank). That
is what a plain layer computes with the weight ``W + scaling * B A``. In a 2-d convolution, too,
``lora_A`` takes the place of the weight, (rank, in_channels, height, width); a 1x1 convolution with
``lora_B``, (out_channels, rank, 1, 1), follows.

Reading ``layer.weight`` builds the dense sum; the layer itself computes with :func:`linear_forward`
or :func:`adapted_forward`, which :meth:`.weight.Weight.put` gives it in place of its own forward.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import LayerSettings

Layer = nn.Linear | nn.Conv2d  # those that compute with the factors


class AdapterParametrization(nn.Module):
    """What adapters of every kind have on one tensor: a name, a switch and a dial.

    It is registered with :mod:`torch.nn.utils.parametrize`, and maps ``W`` to ``W + update``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name  # tells it from other adapters on the same network
        self.scale = 1.0  # of the update, for a finished adapter: 1 as trained, 0 the base exactly
        self.enabled = True  # without it the layer computes the base exactly

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of ``weight``'s shape; what ``layer.weight`` reads as."""
        return weight + self.update(weight) if self.enabled and self.scale else weight

    def update(self, weight: Tensor) -> Tensor:
        """What is added to ``weight``, times ``scale``, of its shape."""
        raise NotImplementedError

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        """``y``, what ``layer`` made of ``x`` so far, and what the update adds to that."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"name={self.name}, scale={self.scale}, enabled={self.enabled}"


class LoRAParametrization(AdapterParametrization):
    """Maps the frozen weight ``W`` to ``W + scaling * lora_B @ lora_A``.

    Only ``lora_A`` and ``lora_B`` learn. ``lora_B`` starts at zero, so at first the layer computes
    what it did before (Hu et al. 2021, section 4.1). ``lora_A`` starts at random:

    - ``gaussian``: ``lora_A ~ N(0, init_std^2)``, as in that paper;
    - ``kaiming``: ``lora_A ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))``, as in its authors' code
      and in PEFT.

    Args:
        weight: the weight to adapt, of two or more dimensions; it is not kept.
        settings: rank, alpha, initialisation and dropout.
        name: tells the adapter from others on the same network.

    Attributes:
        lora_A: shape (rank, *weight.shape[1:]).
        lora_B: shape (weight.shape[0], rank), and a 1 for each further dimension of ``weight``.
        scaling: the factor of the update.
    """

    def __init__(self, weight: Tensor, settings: LayerSettings, name: str = "default") -> None:
        super().__init__(name)
        self.settings = settings
        self.scaling = settings.scaling
        rows, *columns = weight.shape
        ones = [1] * (weight.ndim - 2)
        self.lora_A = nn.Parameter(weight.new_empty(settings.rank, *columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, settings.rank, *ones))
        self.init_factors(weight.detach())

    def init_factors(self, weight: Tensor) -> None:
        """Give ``lora_A`` its first values; ``lora_B`` is zero."""
        if self.settings.init == "gaussian":
            nn.init.normal_(self.lora_A, std=self.settings.init_std or 1.0)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def update(self, weight: Tensor) -> Tensor:
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        return product.view_as(weight) * (self.scaling * self.scale)

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        """``y + scaling * (x A^T) B^T``: through the factors, one after the other."""
        x = F.dropout(x, self.settings.dropout, self.training)
        hidden = compute(layer, x, self.lora_A)
        if isinstance(layer, nn.Conv2d):
            return torch.add(y, F.conv2d(hidden, self.lora_B), alpha=self.scaling * self.scale)
        return torch.addmm(y, hidden, self.lora_B.t(), alpha=self.scaling * self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.settings.rank}, alpha={self.settings.alpha}, {super().extra_repr()}"


def compute(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``layer`` computes of ``x`` with this weight and this bias."""
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
