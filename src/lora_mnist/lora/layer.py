"""LoRA on one layer: a low-rank update of its weight, built in a forward only if that is faster.

A linear layer with the frozen weight ``W``, shape (out_features, in_features), computes

    y = x W^T + b + scaling * (x A^T) B^T,    scaling = alpha / rank

with ``A = lora_A``, shape (rank, in_features), and ``B = lora_B``, shape (out_features, rank). A
plain layer with the weight ``W + scaling * B A`` computes the same, and ``layer.weight`` reads as
that sum. A finished adapter has one more factor, its ``scale``, which is 1 as trained.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import is_number, require
from .point import TRAINED

#: A linear layer with at most this many weights always computes with the factors.
_SMALL = 30_000


def scaling_divisor(rank: int, use_rslora: bool = False) -> float:
    """Return the divisor of alpha, ``sqrt(rank)`` for rsLoRA (Kalajdzievski, arXiv:2312.03732)."""
    return math.sqrt(rank) if use_rslora else rank


class Adapter(nn.Module):
    """An addition to a frozen tensor of the base: LoRA on a weight, or an offset on a bias."""

    #: The field of its point that scales or shifts it.
    point_field: ClassVar[str]
    #: True if layers compute with :meth:`LoRAParametrization.terms`, False for the dense sum.
    is_factored = False

    def __init__(self) -> None:
        super().__init__()
        # If its factor is 0 there, or it is not enabled, the layer computes the base exactly.
        self.point, self.enabled = TRAINED, True
        self.metadata: dict[str, Any] = {}  # from the file it was loaded from


class LoRAParametrization(Adapter):
    """Maps the frozen weight ``W`` to ``W + scale * scaling * lora_B @ lora_A``.

    It is registered with :mod:`torch.nn.utils.parametrize`. ``lora_A`` starts at random and
    ``lora_B`` at zero, so at first the layer computes what it did before (Hu et al., section 4.1).

    Another kind is a subclass. Each defines ``init_parameters`` and ``forward``.
    PiSSA also defines the terms of the forward pass, ``terms`` and ``factors``. DoRA, and any kind
    without ``lora_A`` and ``lora_B``, sets ``is_factored = False`` and defines the content of its
    files, ``config``, ``peft_names`` and ``peft_tensors``.

    Args:
        weight: the weight to adapt, of two or more dimensions; it is not kept.
        rank: the inner dimension, an integer >= 1.
        alpha: sets the scaling, ``alpha / rank``; finite and > 0.
        init: ``gaussian``, ``lora_A ~ N(0, init_std^2)``, as in the paper; or ``kaiming``,
            ``lora_A ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))``, as in its authors' code and PEFT.
        init_std: the standard deviation of ``gaussian``.
        use_rslora: scale by ``alpha / sqrt(rank)``.
        dropout: probability of zeroing each input of the adapter while training.

    Attributes:
        lora_A: shape (rank, *weight.shape[1:]).
        lora_B: shape (weight.shape[0], rank, 1, ...), of as many dimensions as ``weight``.
        point, enabled, metadata: see :class:`Adapter`; the scale is 1 as trained.

    Raises:
        ValueError: if ``rank``, ``alpha`` or ``init`` cannot be used.
    """

    #: The entries of ``adapter_config.json`` that name this kind.
    config: ClassVar[dict[str, Any]] = {"peft_type": "LORA"}
    point_field = "scale"
    is_factored = True
    #: True if weight decay would move the network away from the base, not towards it.
    forbids_decay = False
    #: True if PEFT adds a bias of this kind, ``lora_B.bias``, to a layer.
    has_bias_in_peft = True

    @staticmethod
    def peft_names(module: nn.Module) -> dict[str, str]:
        """Return PEFT's name of each saved tensor, ``lora_A`` first, or {} if unsupported."""
        if isinstance(module, nn.Embedding):  # PEFT's embedding has both factors transposed
            return {"lora_A": "lora_embedding_B", "lora_B": "lora_embedding_A"}
        return {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

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
        require(type(rank) is int and rank >= 1, "rank", rank, "an integer >= 1")
        require(is_number(alpha) and alpha > 0, "alpha", alpha, "a finite number > 0")
        self.rank, self.alpha, self.use_rslora, self.dropout = rank, alpha, use_rslora, dropout
        self.init_parameters(weight, init, init_std)

    def init_parameters(self, weight: Tensor, init: str, init_std: float) -> None:
        """Make the parameters."""
        out_features, *in_features = weight.shape
        ones = [1] * (weight.ndim - 2)
        self.lora_A = nn.Parameter(weight.new_empty(self.rank, *in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(out_features, self.rank, *ones))
        if init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        elif init == "gaussian":
            is_positive = is_number(init_std) and init_std > 0  # from A = B = 0 nothing is learned
            require(is_positive, "init_std", init_std, "a finite number > 0")
            nn.init.normal_(self.lora_A, std=init_std)
        else:
            has_own_start = type(self) is not LoRAParametrization
            require(has_own_start, "init", init, "gaussian or kaiming")

    @property
    def scaling(self) -> float:
        """The factor of ``B A`` in training."""
        return self.alpha / scaling_divisor(self.rank, self.use_rslora)

    @property
    def strength(self) -> float:
        """The factor of ``B A`` now; with 0 the layer computes the base exactly."""
        return self.scaling * self.point.scale if self.enabled else 0.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``A`` and ``B``."""
        return self.lora_A, self.lora_B

    def peft_tensors(self, weight: Tensor, scale: float) -> dict[str, Tensor]:
        """Return the tensors PEFT loads: the scale is part of alpha; at 0, B is zeroed instead."""
        lora_A, lora_B = self.factors()
        factors = {"lora_A": lora_A, "lora_B": lora_B if scale else torch.zeros_like(lora_B)}
        return dict(self.named_parameters()) | factors

    def terms(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the terms of the forward pass as (input, ``A``, ``B``): one, or PiSSA's two."""
        return [(F.dropout(x, self.dropout, self.training), *self.factors())]

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, read as ``layer.weight``, in the shape of ``weight``."""
        if not self.strength:
            return weight
        lora_A, lora_B = self.factors()
        product = (lora_B.flatten(1) @ lora_A.flatten(1)).view_as(weight)
        return weight + product * self.strength


def builds_weight(adapters: Any) -> bool:
    """Return whether a layer computes with its effective weight, and not with the factors."""
    rows, columns = adapters.original.flatten(1).shape
    # Dropout acts on an adapter's input, and needs the factors.
    has_dropout = any(each.dropout and each.training for each in adapters)
    rank = sum(each.rank for each in adapters)
    # One more gradient, of the weight, is less than three passes through factors of a high rank.
    return 3 * rank * (rows + columns) > rows * columns and not has_dropout


def linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute an adapted linear layer: (..., in_features) to (..., out_features)."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    if adapters.original.numel() > _SMALL and builds_weight(adapters):
        return F.linear(x, layer.weight, layer.bias)
    rows = x.reshape(-1, x.shape[-1])
    y = F.linear(rows, adapters.original, layer.bias)
    for adapter in adapters:
        if adapter.strength:
            for inputs, lora_A, lora_B in adapter.terms(rows):
                hidden = F.linear(inputs, lora_A)
                y = torch.addmm(y, hidden, lora_B.t(), alpha=adapter.strength)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def conv2d_forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute an adapted convolution: with ``lora_A`` as its weight, then ``lora_B``, 1x1."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    geometry: Any = (layer.stride, layer.padding, layer.dilation)
    if builds_weight(adapters):
        return F.conv2d(x, layer.weight, layer.bias, *geometry)
    y = F.conv2d(x, adapters.original, layer.bias, *geometry)
    for adapter in adapters:
        if adapter.strength:
            for inputs, lora_A, lora_B in adapter.terms(x):
                hidden = F.conv2d(inputs, lora_A, None, *geometry)
                y = torch.add(y, F.conv2d(hidden, lora_B), alpha=adapter.strength)
    return y
