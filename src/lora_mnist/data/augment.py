"""Augmentation: each training image changed a little, and differently each time it is drawn.

Any callable from a batch to a batch will do, such as one of torchvision.transforms.v2; but those
draw once for a whole batch. The ones below draw for each image, shape (N, channels, height, width).
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


def augmented(images: Tensor, augment: Callable[[Tensor], Tensor], draw: str) -> Tensor:
    """``augment(images)``, with random numbers that depend on ``draw`` alone.

    ``draw`` names the batch, so that a resumed run goes on with the same changes. No other random
    number of the process moves: with or without augmentation, dropout and new weights are the same.
    """
    seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:7], "little")
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        return augment(images)


class Shift(nn.Module):
    """Move each image by whole pixels, up or down and left or right, all distances alike.

    The border's pixels fill what becomes free.

    Args:
        share: the largest distance, as a share of the image's height and width; from 0 to 1.
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = _checked("share", share)

    def forward(self, images: Tensor) -> Tensor:
        sources = []  # where the pixels on each axis come from; shape (N, side)
        for side in images.shape[2:]:
            most = round(self.share * side)
            distances = torch.randint(-most, most + 1, (len(images), 1))
            sources.append((torch.arange(side) + distances).clamp(0, side - 1).to(images.device))
        n = torch.arange(len(images), device=images.device)[:, None, None]
        # Around the slice, the indexed dimensions come first: (N, height, width, channels).
        moved = images[n, :, sources[0][:, :, None], sources[1][:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()


class Flip(nn.Module):
    """Mirror some of the images, left to right.

    Args:
        p: probability that an image is mirrored.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _checked("p", p)

    def forward(self, images: Tensor) -> Tensor:
        chosen = (torch.rand(len(images)) < self.p).to(images.device)
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _checked(name: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a number from 0 to 1")
    return value
