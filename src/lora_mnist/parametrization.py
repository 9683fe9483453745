"""One LoRA adapter of one weight, and the forward pass of a layer that carries it.

A weight ``W`` of a linear layer has shape (out_features, in_features); ``lora_A`` then has shape
(rank, in_features) and ``lora_B`` (out_features, rank). A weight of a 2-d convolution has shape
(out_channels, in_channels, height, width); ``lora_A`` is a convolution to ``rank`` channels,
(rank, in_channels, height, width), and ``lora_B`` a 1x1 convolution from them,
(out_channels, rank, 1, 1).

Papers: LoRA, arXiv:2106.09685; rank-stabilised scaling, arXiv:2312.03732; PiSSA, arXiv:2404.02948.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The kinds of layer that can carry an adapter.
Layer: TypeAlias = nn.Linear | nn.Conv2d

INITS = ("gaussian", "kaiming", "pissa")


class LoRAParametrization(nn.Module):
    """Maps ``W`` to ``W + scaling * lora_B @ lora_A``.

    How ``lora_A`` and ``lora_B`` start; with each the layer computes at first what it did before:

    - ``gaussian``: ``lora_A ~ N(0, init_std^2)``, ``lora_B = 0`` (Hu et al. 2021, section 4.1).
    - ``kaiming``: ``lora_A ~ U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))``, ``lora_B = 0``, as in
      Microsoft's code for that paper and in PEFT.
    - ``pissa``: with ``W = U S V^T``, ``lora_A = sqrt(S_r / scaling) V_r^T`` and
      ``lora_B = U_r sqrt(S_r / scaling)`` of the ``rank`` largest singular values (Meng et al.
      2024, section 3), so training moves the principal part of ``W`` and keeps the residual
      ``W - scaling * lora_B @ lora_A`` frozen. Here ``W`` itself stays in place, and with it the
      proof that it never moved: the start is kept as ``start_A`` and ``start_B``, and the weight is
      ``W + scaling * (lora_B @ lora_A - start_B @ start_A)``, which is the same number.

    Args:
        weight: the weight to adapt; gives shapes, device and dtype.
        rank: inner dimension ``r`` of the update, an integer >= 1.
        alpha: numerator of the scaling, finite and > 0.
        init: ``gaussian``, ``kaiming`` or ``pissa``.
        init_std: standard deviation of ``lora_A`` with ``gaussian``, finite and > 0.
        use_rslora: ``scaling = alpha / sqrt(rank)`` instead of ``alpha / rank`` (Kalajdzievski
            2023, section 3).
        dropout: probability of zeroing each input of the adapter in training mode, in [0, 1).
        name: tells the adapter from others on the same network.

    Attributes:
        scaling: the factor of the update.
        enabled: whether the update is applied; see :func:`lora_mnist.lora_disabled`.

    Raises:
        ValueError: if an argument is out of range.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        alpha: float,
        init: str,
        init_std: float,
        use_rslora: bool,
        dropout: float,
        name: str,
    ) -> None:
        super().__init__()
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"rank={rank}: expected an integer >= 1")
        if not (_is_number(alpha) and alpha > 0):
            raise ValueError(f"alpha={alpha}: expected a finite number > 0")
        if not (_is_number(init_std) and init_std > 0):
            raise ValueError(f"init_std={init_std}: expected a finite number > 0")
        if not isinstance(use_rslora, bool):
            raise ValueError(f"use_rslora={use_rslora}: expected true or false")
        if not (_is_number(dropout) and 0 <= dropout < 1):
            raise ValueError(f"dropout={dropout}: expected a number from 0 to below 1")
        self.rank = rank
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = dropout
        self.name = name
        self.enabled = True
        lora_A, lora_B = _start(weight.detach(), rank, self.scaling, init, init_std)
        self.register_buffer("start_A", lora_A.clone() if init == "pissa" else None)
        self.register_buffer("start_B", lora_B.clone() if init == "pissa" else None)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of ``weight``'s shape. Dense: read it, do not train on it."""
        if not self.enabled:
            return weight
        update = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        if self.start_A is not None and self.start_B is not None:
            update = update - self.start_B.flatten(1) @ self.start_A.flatten(1)
        return weight + update.view_as(weight) * self.scaling

    def add_update(
        self, output: Tensor, inputs: Tensor, operation: Callable[..., Tensor]
    ) -> Tensor:
        """``output`` plus what the adapter adds to it, without ever forming ``B A``.

        Args:
            output: what the layer computed so far: (rows, out_features), or (..., out_channels,
                height, width).
            inputs: what the layer was given: (rows, in_features), or (..., in_channels, height,
                width).
            operation: what the layer does with inputs, a weight and a bias or ``None``.
        """
        if not self.enabled:
            return output
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        hidden = operation(inputs, self.lora_A, None)
        if self.start_A is None or self.start_B is None:
            if hidden.ndim == 2:  # one kernel instead of two
                return torch.addmm(output, hidden, self.lora_B.t(), alpha=self.scaling)
            update = _expand(hidden, self.lora_B)
        else:
            # The difference first: at the start it is zero to the last bit.
            start = _expand(operation(inputs, self.start_A, None), self.start_B)
            update = _expand(hidden, self.lora_B) - start
        return torch.add(output, update, alpha=self.scaling)

    def extra_repr(self) -> str:
        return f"name={self.name}, rank={self.rank}, alpha={self.alpha}, enabled={self.enabled}"


def _is_number(value: float) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _start(
    weight: Tensor, rank: int, scaling: float, init: str, init_std: float
) -> tuple[Tensor, Tensor]:
    """``lora_A`` and ``lora_B`` as they are when training begins."""
    lora_A = weight.new_empty(rank, *weight.shape[1:])
    lora_B = weight.new_zeros(len(weight), rank, *[1] * (weight.ndim - 2))
    if init == "gaussian":
        return lora_A.normal_(std=init_std), lora_B
    if init == "kaiming":
        return nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5)), lora_B
    if init != "pissa":
        raise ValueError(f"init={init}: expected one of {', '.join(INITS)}")
    matrix = weight.flatten(1)
    if rank > min(matrix.shape):
        limit = f"at most {min(matrix.shape)} with init=pissa"
        raise ValueError(f"rank={rank}: expected {limit} for a weight of {tuple(weight.shape)}")
    # Half precision has no singular value decomposition.
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    lora_A.copy_((root[:, None] * right[:rank]).view_as(lora_A))
    lora_B.copy_((left[:, :rank] * root).view_as(lora_B))
    return lora_A, lora_B


def _expand(hidden: Tensor, lora_B: Tensor) -> Tensor:
    """From ``rank`` features or channels to those of the layer's output."""
    return F.linear(hidden, lora_B) if lora_B.ndim == 2 else F.conv2d(hidden, lora_B)


def parametrizations(layer: Layer) -> Any:
    """What torch has registered on the weight, in order; typed as nothing in particular there."""
    return layer.parametrizations.weight  # type: ignore[union-attr]


def _linear_forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """``nn.Linear.forward`` of an adapted layer, from the factors."""
    if inputs.ndim == 2:
        return _factored(layer, inputs, F.linear)
    output = _factored(layer, inputs.reshape(-1, inputs.shape[-1]), F.linear)
    return output.reshape(*inputs.shape[:-1], output.shape[-1])


def _conv2d_forward(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """``nn.Conv2d.forward`` of an adapted layer, from the factors."""
    return _factored(layer, inputs, layer._conv_forward)


def _factored(layer: Layer, inputs: Tensor, operation: Callable[..., Tensor]) -> Tensor:
    """Base and adapters of ``layer``; ``operation`` takes inputs, a weight and a bias."""
    steps = parametrizations(layer)
    output: Tensor = operation(inputs, steps.original, layer.bias)
    for step in steps:
        if not isinstance(step, LoRAParametrization):
            # Somebody else's stands on the same weight: only the dense one is right.
            return operation(inputs, layer.weight, layer.bias)
        output = step.add_update(output, inputs, operation)
    return output


#: What takes the place of ``forward`` on an adapted layer, by kind.
FACTORED_FORWARDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: _linear_forward,
    nn.Conv2d: _conv2d_forward,
}
