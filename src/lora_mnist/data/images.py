"""Sets of images, in memory or on the disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

#: Images, uint8, (B, channels, height, width), and labels, int64, (B,).
Batch = tuple[Tensor, Tensor]
#: Makes one image of another, such as a transform of torchvision.transforms.v2.
Augment = Callable[[Any], Any]


@dataclass(eq=False)
class Images(Dataset[Batch]):
    """A set of N images, some of them perhaps on the disk.

    Attributes:
        pixels: of each image its tensor, (channels, height, width), or its file; or one tensor of
            all, which is quicker.
        labels: their classes, int64, shape (N,).
        own_names: the file of each image, below the data's folder; ``None``: they have numbers.
        read: makes the tensor of a file, changed by an :data:`Augment`, if any; ``None``: all
            images are in memory.
    """

    pixels: Tensor | Sequence[Tensor | Path]
    labels: Tensor
    own_names: Sequence[str | int] | None = None
    read: Callable[[Path, Augment | None], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> Sequence[str | int]:
        """The file of each image, below the data's folder, or its number in the data set."""
        return range(len(self)) if self.own_names is None else self.own_names

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        """The images at ``indices``, each changed by ``augment``, and their labels."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.pixels, Tensor) and augment is None:
            return self.pixels[index], self.labels[index]
        images = []
        for i in indices:
            image = self.pixels[i]
            if isinstance(image, Path):
                assert self.read is not None
                image = self.read(image, augment)
            elif augment is not None:
                image = augment(image)
            images.append(image)
        return torch.stack(images) if images else torch.empty(0), self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """:meth:`take` under the name by which DataLoader calls it."""
        return self.take(indices)

    def subset(self, indices: Tensor) -> "Images":
        """The images at ``indices``, int64, under the names that they have here."""
        names, order = self.names(), indices.tolist()
        pixels: Any = self.pixels
        pixels = pixels[indices] if isinstance(pixels, Tensor) else [pixels[i] for i in order]
        own_names = [names[i] for i in order]
        return replace(self, pixels=pixels, labels=self.labels[indices], own_names=own_names)

    def followed_by(self, others: "Images") -> "Images":
        """These images, and after them ``others``, of the same size."""
        return Images(
            [*self.pixels, *others.pixels],
            torch.cat([self.labels, others.labels]),
            [*self.names(), *others.names()],
            self.read or others.read,
        )


def sha256_of(images: Tensor, labels: Tensor) -> str:
    """The SHA-256 of images and labels (int64), in hexadecimal."""
    digest = hashlib.sha256(images.numpy().data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()


def viewable(images: Tensor) -> Tensor:
    """Images to look at: uint8, also where a transform made floats of them."""
    if not images.is_floating_point():
        return images
    low = images.amin((-3, -2, -1), keepdim=True)
    high = images.amax((-3, -2, -1), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-9) * 255).to(torch.uint8)
