"""Augmentation: each training image changed a little, and differently each time it is drawn.

Any callable from a batch to a batch will do, such as one of torchvision.transforms.v2; but those
draw once for a whole batch. The ones below draw for each image.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


def augmented(images: Tensor, augment: Callable[[Tensor], Tensor], draw: str) -> Tensor:
    """``augment(images)``, with random numbers that depend on ``draw`` alone.

    No other random number of the process moves: with or without augmentation, dropout and new
    weights are the same. A resumed run goes on with the same changes.

    Args:
        images: a batch of training images.
        augment: what changes it, drawing from torch's global generator.
        draw: names the batch, and whatever else is to make a difference.
    """
    seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:7], "little")
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        return augment(images)


class Shift(nn.Module):
    """Move each image by whole pixels, up or down and left or right, all distances alike.

    The border's pixels fill what becomes free.

    Args:
        share: the largest distance, as a share of the image's height and width.

    Raises:
        ValueError: if ``share`` is not between 0 and 1.
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise ValueError(f"share={share}: expected a number from 0 to 1")
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        """``images``, shape (N, channels, height, width), moved."""
        rows, columns = (self._moved(len(images), side) for side in images.shape[2:])
        n, rows, columns = (
            index.to(images.device)
            for index in (torch.arange(len(images)), rows[:, :, None], columns[:, None, :])
        )
        # Around the slice, the indexed dimensions come first: (N, height, width, channels).
        return images[n[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()

    def _moved(self, count: int, side: int) -> Tensor:
        """Where the pixels on one axis of ``count`` images come from; shape (count, side)."""
        most = round(self.share * side)
        distances = torch.randint(-most, most + 1, (count, 1))
        return (torch.arange(side) + distances).clamp(0, side - 1)


class Flip(nn.Module):
    """Mirror some of the images, left to right.

    Args:
        p: probability that an image is mirrored.

    Raises:
        ValueError: if ``p`` is not between 0 and 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if type(p) not in (int, float) or not 0 <= p <= 1:
            raise ValueError(f"p={p}: expected a number from 0 to 1")
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """``images``, shape (N, channels, height, width), some of them mirrored."""
        chosen = (torch.rand(len(images)) < self.p).to(images.device)
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)
