"""Mean and standard deviation of pixels: measured, and kept where they are needed."""

from functools import lru_cache

import torch
from torch import Tensor

from lora_mnist.data.images import Images


def pixel_moments(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels of each channel, from 0 to 255, float64, (C,)."""
    total = squares = torch.zeros(1, dtype=torch.int64)
    count = 0
    for indices in torch.split(torch.arange(len(images)), 64):
        pixels = images.take(indices.tolist())[0].transpose(0, 1).flatten(1).long()
        # Whole numbers: exact, whatever the order of summation.
        total = total + pixels.sum(1)
        squares = squares + pixels.square().sum(1)
        count += pixels.shape[1]
    mean = total.double() / count
    return mean, (squares.double() / count - mean**2).clamp(min=0).sqrt()


@lru_cache(maxsize=32)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number for each channel, or for all of them, (C, 1, 1), copied to ``device`` once."""
    with torch.inference_mode(False):  # validation may ask first, and training needs it too
        return torch.tensor(values, device=device).view(-1, 1, 1)
