"""A folder of mistakes: misclassified pictures, in a subfolder for each right class."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lora_mnist.data.images import Augment, Batch, Images, ImageTensors, Subset

_warn = rank_zero_only(logging.getLogger(__name__).warning)


class WithMistakes(Images):
    """Training images, in memory or on the disk, and after them mistakes to learn from."""

    def __init__(self, images: Images, mistakes: ImageTensors) -> None:
        self.images, self.mistakes = images, mistakes
        self.labels = torch.cat([images.labels, mistakes.labels])

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        index, count = torch.as_tensor(indices, dtype=torch.int64), len(self.images)
        is_mistake = index >= count
        images = self.mistakes.images.new_empty(len(index), *self.mistakes.images.shape[1:])
        mistakes = (index[is_mistake] - count).tolist()
        images[is_mistake] = self.mistakes.take(mistakes, augment)[0]
        images[~is_mistake] = self.images.take(index[~is_mistake].tolist(), augment)[0]
        return images, self.labels[index]


def without_mistakes(images: Images, mistakes: ImageTensors, purpose: str) -> Images:
    """``images``, for ``purpose``, without those that are pixel by pixel among the ``mistakes``."""
    learnt = {image.numpy().tobytes() for image in mistakes.images}
    others = []
    for indices in torch.split(torch.arange(len(images)), 250):
        for i, image in zip(indices, images.take(indices.tolist())[0], strict=True):
            if image.numpy().tobytes() not in learnt:
                others.append(int(i))
    if len(others) == len(images):
        return images
    message = (
        "%d %s images are among the mistakes to learn, and left out of the %s: the base looks "
    )
    message += "better on the others than it is; expected mistakes from elsewhere (docs/hotfix.md)"
    _warn(message, len(images) - len(others), purpose, purpose)
    return Subset(images, torch.tensor(others, dtype=torch.int64))


def read_mistakes(
    folder: Path,
    class_of: Callable[[str], int],
    read_picture: Callable[[Path], Tensor],
    test_share: float,
) -> list[ImageTensors]:
    """The mistakes in ``folder`` to learn from, and those held out.

    ``folder`` holds a folder for each class; ``class_of`` gives the class of a folder's name. The
    pictures come in the order of their SHA-256, and the first are held out: the share
    ``test_share``, at least one, or none if it is 0. So names do not matter, a picture that is
    there twice counts once, and more pictures change the choice little. The log names each picture
    that cannot be read and is left out. ``ValueError``, if no picture is left to learn from.
    """
    pictures: dict[tuple[str, int], Tensor] = {}
    for path in sorted(folder.glob("[!.]*/[!.]*")):
        try:
            label = class_of(path.parent.name)
        except ValueError as error:
            raise ValueError(f"mistakes={folder}: {error}") from error
        try:
            image = read_picture(path)
        except ValueError as error:
            _warn("%s: skipped: %s", path, error)
            continue
        pictures[hashlib.sha256(path.read_bytes()).hexdigest(), label] = image
    count = max(1, round(test_share * len(pictures))) if test_share else 0
    if count >= len(pictures):
        raise ValueError(
            f"mistakes={folder}: expected more pictures, in a folder for each class, than the "
            f"{count} to hold out; found {len(pictures)}"
        )
    order = sorted(pictures)
    images = torch.stack([pictures[key] for key in order])
    labels = torch.tensor([label for _, label in order], dtype=torch.int64)
    learnt = ImageTensors(images[count:], labels[count:])
    return [learnt, ImageTensors(images[:count], labels[:count])]
