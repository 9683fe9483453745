"""Sets of images: in memory, parts of another set, or with each image changed at random."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

#: Images, uint8, (B, channels, height, width), and labels, int64, (B,).
Batch = tuple[Tensor, Tensor]
#: Makes one image of another, such as a transform of torchvision.transforms.v2.
Augment = Callable[[Any], Any]


def viewable(images: Tensor) -> Tensor:
    """Images to look at: uint8, also where a transform made floats of them."""
    if not images.is_floating_point():
        return images
    low = images.amin((-3, -2, -1), keepdim=True)
    high = images.amax((-3, -2, -1), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-9) * 255).to(torch.uint8)


@lru_cache(maxsize=32)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number for each channel, or for all of them, (C, 1, 1), copied to ``device`` once."""
    with torch.inference_mode(False):  # validation may ask first, and training needs it too
        return torch.tensor(values, device=device).view(-1, 1, 1)


class Images(Dataset[Batch]):
    """A set of N images, in memory or on the disk."""

    labels: Tensor  # int64, shape (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Sequence[str | int]:
        """The file of each image, below the data's folder, or its number in the data set."""
        return range(len(self))

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        """The images at ``indices``, each changed by ``augment``, and their labels."""
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Batch:
        """:meth:`take` under the name by which DataLoader calls it."""
        return self.take(indices)


@dataclass(eq=False)
class ImageTensors(Images):
    """Images in memory; a whole batch is one index operation."""

    images: Tensor  # uint8, shape (N, channels, height, width)
    labels: Tensor  # int64, shape (N,)
    own_names: Sequence[str | int] | None = None

    def names(self) -> Sequence[str | int]:
        return super().names() if self.own_names is None else self.own_names

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[index]
        if augment is not None and len(index):
            images = torch.stack([augment(image) for image in images])
        return images, self.labels[index]

    def sha256(self) -> str:
        """The SHA-256 of images and labels (int64), in hexadecimal."""
        digest = hashlib.sha256(self.images.numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class Subset(Images):
    """The images of another set at ``indices``, int64, shape (N,)."""

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images, self.indices = images, indices
        self.labels = images.labels[indices]

    def names(self) -> Sequence[str | int]:
        names = self.images.names()
        return [names[i] for i in self.indices.tolist()]

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.images.take(self.indices[index].tolist(), augment)


class Both(Images):
    """Two sets as one: the images of ``first``, and after them those of ``second``."""

    def __init__(self, first: Images, second: Images) -> None:
        self.first, self.second = first, second
        self.labels = torch.cat([first.labels, second.labels])

    def names(self) -> Sequence[str | int]:
        return [*self.first.names(), *self.second.names()]

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        index, count = torch.as_tensor(indices, dtype=torch.int64), len(self.first)
        is_second = index >= count
        if not is_second.any():
            return self.first.take(index.tolist(), augment)
        if is_second.all():
            return self.second.take((index - count).tolist(), augment)
        first = self.first.take(index[~is_second].tolist(), augment)[0]
        second = self.second.take((index[is_second] - count).tolist(), augment)[0]
        images = first.new_empty(len(index), *first.shape[1:])
        images[~is_second], images[is_second] = first, second
        return images, self.labels[index]
