"""From pixels to what a network sees: ``(pixel / 255 - mean) / std``."""

from typing import Any

import torch
from torch import Tensor

from lora_mnist.data.arguments import Channelwise


def normalise(images: Tensor, mean: Channelwise, std: Channelwise) -> Tensor:
    """``(images / 255 - mean) / std`` in float32, in torchvision's order of operations.

    Args:
        images: uint8, shape (N, channels, height, width).
        mean: on the scale 0 to 1; a number, or one for each channel.
        std: likewise.

    Returns:
        float32, of the same shape.
    """
    return images.float().div_(255).sub_(_operand(mean, images)).div_(_operand(std, images))


def _operand(value: Channelwise, images: Tensor) -> Any:
    if not isinstance(value, list):
        return value
    return torch.tensor(value, device=images.device).view(-1, 1, 1)


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel on the scale 0 to 1, to four decimals.

    Args:
        images: uint8, shape (N, channels, height, width), N > 0.
    """
    # Whole numbers: exact, whatever the order of summation. In parts, since a pixel takes 8 bytes.
    total = squares = torch.zeros(images.shape[1], dtype=torch.int64)
    for part in torch.split(images, 64):
        pixels = part.transpose(0, 1).flatten(1).long()
        total = total + pixels.sum(1)
        squares = squares + pixels.square().sum(1)
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp(min=0).sqrt()
    return (
        [round(value / 255, 4) for value in mean.tolist()],
        [round(value / 255, 4) for value in std.tolist()],
    )
