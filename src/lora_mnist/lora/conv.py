"""LoRA on one 2-d convolution: another one to ``rank`` channels, and a 1x1 convolution from them.

``lora_A`` has the shape (rank, in_channels, height, width) and takes stride, padding and dilation
from the layer; ``lora_B`` has the shape (out_channels, rank, 1, 1).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def conv2d_forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``forward`` of an adapted 2-d convolution with ``groups=1`` and zeros as padding."""
    adapters: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    W, b = adapters.original, layer.bias
    y = F.conv2d(x, W, b, layer.stride, layer.padding, layer.dilation)
    for adapter in adapters:
        if adapter.is_on:
            y = adapter.add_update(y, x, layer)
    return y


def low_rank(x: Tensor, lora_A: Tensor, lora_B: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """``(x A^T) B^T``: what ``layer`` computes with the weight ``B A`` and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, lora_A), lora_B)
    hidden = F.conv2d(x, lora_A, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(hidden, lora_B)
