"""Sets of images, in memory or on the disk, and the images of a classifier by split."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lora_mnist.data.digests import compute_digests
from lora_mnist.errors import printable

log = logging.getLogger(__name__)

#: Images, uint8, (B, channels, height, width), and labels, int64, (B,).
Batch = tuple[Tensor, Tensor]
#: Makes one image of another, such as a transform of torchvision.transforms.v2.
Augment = Callable[[Any], Any]
#: Reads files, and augments what they show.
Reader = Callable[[Sequence[Path], Augment | None], list[Tensor]]


@dataclass(eq=False)
class Images(Dataset[Batch]):
    """A set of N images, all of them files or none."""

    sources: Sequence[Tensor | Path]  # of each, (channels, height, width), or its file
    labels: Tensor  # int64, shape (N,)
    names: Sequence[str | int] = ()  # files, below the data's folder, or numbers in the data set
    reader: Reader | None = None  # of files
    augment: Augment | None = None  # of each image in a batch
    digests: Tensor = field(default=None)  # type: ignore[assignment]  # of :func:`compute_digests`

    def __post_init__(self) -> None:
        self.names = self.names or range(len(self))
        if self.digests is None:
            self.digests = compute_digests(self.sources)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Batch:
        """Return the images at ``indices``, and their labels."""
        images: list[Any] = [self.sources[i] for i in indices]
        if self.reader is not None:
            images = self.reader(images, self.augment)
        elif self.augment is not None:
            images = list(map(self.augment, images))
        return torch.stack(images) if images else torch.empty(0), self.labels[list(indices)]

    __getitems__ = take  # the name by which DataLoader calls it

    def subset(self, indices: Tensor) -> "Images":
        """Return the images at ``indices``, int64, with their names."""
        order = indices.tolist()
        sources, names = [self.sources[i] for i in order], [self.names[i] for i in order]
        labels, digests = self.labels[indices], self.digests[indices]
        return replace(self, sources=sources, labels=labels, names=names, digests=digests)

    def without(self, is_excluded: Tensor) -> "Images":
        """Return the images for which ``is_excluded``, bool of shape (N,), is False."""
        return self.subset((~is_excluded).nonzero()[:, 0]) if is_excluded.any() else self

    def without_train_images(
        self, train_digests: Mapping[str, Tensor | None], name: str
    ) -> tuple["Images", dict[str, Any]]:
        """Return these images without those trained on, and a note that calls them ``name``."""
        is_trained_on, owners = torch.zeros(len(self), dtype=torch.bool), []
        for owner, digests in train_digests.items():
            if digests is not None and (known := torch.isin(self.digests, digests)).any():
                is_trained_on |= known
                owners.append(owner)
        if not owners:
            return self, {}
        count, who = int(is_trained_on.sum()), " and the ".join(owners)
        line = f"{count} of {len(self)} {name} are excluded: the {who} "
        line += f"{'was' if len(owners) == 1 else 'were'} trained on them"
        return self.without(is_trained_on), {"images": count, "of": len(self), "line": line}

    def followed_by(self, others: "Images") -> "Images":
        """Return these images followed by ``others``, which have the same size."""
        return Images(
            [*self.sources, *others.sources],
            torch.cat([self.labels, others.labels]),
            [*self.names, *others.names],
            self.reader or others.reader,
            digests=torch.cat([self.digests, others.digests]),
        )


@dataclass(frozen=True)
class ImageSets:
    """All images of a data set, by split."""

    train: Images
    val: Images
    test: Images
    sha256: Mapping[str, str]  # by split, in hexadecimal; a folder has one, ``all``
    held_out: Mapping[str, str]  # for val and test: the split from which images were held out
    duplicates: int = 0  # images excluded, since an earlier split has them
    #: By split: the number of images excluded as trained on, of how many, and a line about them.
    excluded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def can_validate_on_test(self) -> bool:
        """True if ``val_from=test`` could supply validation images from a folder test/."""
        return "test" not in self.held_out and self.held_out.get("val") != "test"

    def without_duplicates(self) -> "ImageSets":
        """Return the sets without duplicates, which stay in the first of train, val and test."""
        seen, duplicates, rest = self.train.digests, [], []
        for images in (self.val, self.test):
            is_duplicate = torch.isin(images.digests, seen)
            duplicates += [images.names[i] for i in is_duplicate.nonzero()[:, 0].tolist()]
            rest.append(images.without(is_duplicate))
            seen = torch.cat([seen, images.digests])
        if duplicates:
            message = "%d images are excluded, since another split has them: %s, ..."
            log.warning(message, len(duplicates), printable(duplicates[0]))
        return replace(self, val=rest[0], test=rest[1], duplicates=len(duplicates))

    def without_train_images(self, train_digests: Mapping[str, Tensor | None]) -> "ImageSets":
        """Return these sets without validation and test images that the model was trained on."""
        val, of_val = self.val.without_train_images(train_digests, "validation images")
        test, of_test = self.test.without_train_images(train_digests, "test images")
        excluded = {split: about for split, about in (("val", of_val), ("test", of_test)) if about}
        return replace(self, val=val, test=test, excluded=excluded)


def viewable(images: Tensor) -> Tensor:
    """Return images as uint8 to look at; floats of a transform are stretched to 0..255."""
    if not images.is_floating_point():
        return images
    low = images.amin((-3, -2, -1), keepdim=True)
    high = images.amax((-3, -2, -1), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-9) * 255).to(torch.uint8)
