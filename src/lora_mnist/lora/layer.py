"""LoRA on one layer: a low-rank update of its weight, and a forward pass that never builds it.

A linear layer with the frozen weight ``W``, shape (out_features, in_features), computes

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with ``A = lora_A``, shape (rank, in_features), and ``B = lora_B``, shape (out_features, rank). A
convolution does the same with a convolution to ``rank`` channels, ``lora_A`` of shape (rank,
in_channels, height, width), and a 1x1 convolution from them, ``lora_B`` of shape (out_channels,
rank, 1, 1). Any other weight is adapted through the dense sum ``W + scaling * B A``.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import LayerSettings


class AdapterParametrization(nn.Module):
    """What adapters of every kind have on one tensor: a name, a switch and a dial.

    It maps the frozen ``W`` to ``W`` and what :meth:`update` adds to it.

    Attributes:
        name: tells the adapter from others on the same network.
        scale: a factor of the update, for a finished adapter: 1 as trained, 0 the base exactly.
        enabled: whether the update is applied. Without it the layer computes the base exactly.
        was_trainable: whether ``W`` required a gradient before.
    """

    def __init__(self, weight: Tensor, name: str) -> None:
        super().__init__()
        self.name = name
        self.scale = 1.0
        self.enabled = True
        self.was_trainable = weight.requires_grad

    @property
    def is_on(self) -> bool:
        """Whether the adapter adds anything to the base."""
        return self.enabled and self.scale != 0

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of ``weight``'s shape; what ``layer.weight`` reads as."""
        if not self.is_on:
            # As before it was frozen: torch's attention and recurrent layers take another path,
            # and round otherwise, where a weight requires no gradient.
            return weight.detach().requires_grad_() if self.was_trainable else weight
        return weight + self.update(weight)

    def update(self, weight: Tensor) -> Tensor:
        """What is added to ``weight``, times ``scale``, of its shape."""
        raise NotImplementedError

    def add_update(self, y: Tensor, x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """``y`` and what :meth:`update` adds to the output of ``layer``, without a dense weight.

        ``x`` is the input of ``layer``, of shape (rows, in_features) or (..., in_channels, height,
        width), and ``y`` what it computed so far.
        """
        raise NotImplementedError

    def fold_scale(self, weight: Tensor) -> None:
        """Make ``scale`` a part of the adapter on ``weight``, whose ``scale`` is then 1."""
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
        settings: rank, scaling, initialisation and dropout.
        name: tells the adapter from others on the same network.

    Attributes:
        lora_A: shape (rank, *weight.shape[1:]).
        lora_B: shape (weight.shape[0], rank), and a 1 for each further dimension of ``weight``.
        scaling: the factor of the update.
    """

    def __init__(self, weight: Tensor, settings: LayerSettings, name: str = "default") -> None:
        super().__init__(weight, name)
        self.rank = settings.rank
        self.alpha = settings.alpha
        self.use_rslora = settings.use_rslora
        self.scaling = settings.scaling
        self.dropout = settings.dropout
        rows, *columns = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(self.rank, *columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, self.rank, *[1] * (weight.ndim - 2)))
        self.init_factors(weight.detach(), settings)

    def init_factors(self, weight: Tensor, settings: LayerSettings) -> None:
        """Give ``lora_A`` its first values; ``lora_B`` is zero."""
        if settings.init == "gaussian":
            nn.init.normal_(self.lora_A, std=settings.init_std or 1.0)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def update(self, weight: Tensor) -> Tensor:
        return self.product().view_as(weight) * (self.scaling * self.scale)

    def product(self) -> Tensor:
        """``lora_B @ lora_A`` as a matrix, shape (weight.shape[0], weight[0].numel())."""
        return self.lora_B.flatten(1) @ self.lora_A.flatten(1)

    def add_update(self, y: Tensor, x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """``y + scaling * (x A^T) B^T``, from the factors alone."""
        x = F.dropout(x, self.dropout, self.training)
        if isinstance(layer, nn.Conv2d):
            update = low_rank(x, self.lora_A, self.lora_B, layer)
            return torch.add(y, update, alpha=self.scaling * self.scale)
        # As above, with one kernel less.
        hidden = F.linear(x, self.lora_A)
        return torch.addmm(y, hidden, self.lora_B.t(), alpha=self.scaling * self.scale)

    @torch.no_grad()
    def fold_scale(self, weight: Tensor) -> None:
        if self.scale == 0:
            self.lora_B.zero_()  # no alpha is 0
        else:
            self.alpha *= self.scale
            self.scaling *= self.scale
        self.scale = 1.0

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, {super().extra_repr()}"


def low_rank(x: Tensor, lora_A: Tensor, lora_B: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """``(x A^T) B^T``: what ``layer`` computes with the weight ``B A`` and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, lora_A), lora_B)
    hidden = F.conv2d(x, lora_A, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(hidden, lora_B)


def linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """``forward`` of an adapted linear layer: (..., in_features) to (..., out_features)."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    if not is_lora_alone(adapters):
        return nn.Linear.forward(layer, x)
    rows = x.reshape(-1, x.shape[-1])
    y = F.linear(rows, adapters.original, layer.bias)
    for adapter in adapters:
        if adapter.is_on:
            y = adapter.add_update(y, rows, layer)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def conv2d_forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``forward`` of an adapted 2-d convolution with ``groups=1`` and zeros as padding."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    if not is_lora_alone(adapters):
        return nn.Conv2d.forward(layer, x)
    W, b = adapters.original, layer.bias
    y = F.conv2d(x, W, b, layer.stride, layer.padding, layer.dilation)
    for adapter in adapters:
        if adapter.is_on:
            y = adapter.add_update(y, x, layer)
    return y


def is_lora_alone(parametrizations: nn.ModuleList) -> bool:
    """Whether no other parametrization stands on the weight: then only the dense one is right."""
    return all(isinstance(each, AdapterParametrization) for each in parametrizations)


def weight_below(parametrizations: Any, adapter: AdapterParametrization) -> Tensor:
    """The effective weight without ``adapter`` and what is stacked on it."""
    weight: Tensor = parametrizations.original
    for each in parametrizations:
        if each is adapter:
            break
        weight = each(weight)
    return weight
