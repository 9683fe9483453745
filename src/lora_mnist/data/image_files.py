"""Image files in folders of classes: listed, and read when they are needed."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from lora_mnist.data.images import Augment, Batch, Images
from lora_mnist.data.pictures import open_picture, with_eight_bits
from lora_mnist.errors import UserError

log = logging.getLogger(__name__)

#: The purpose of the images in a folder, by its name in lower case.
_PART_OF = dict.fromkeys(("train", "training"), "train")
_PART_OF |= dict.fromkeys(("val", "valid", "validation"), "val")
_PART_OF |= dict.fromkeys(("test", "testing"), "test")


class Entry(NamedTuple):
    """An image file of a folder."""

    path: str  # below the data folder, with "/" between
    label: int
    part: str  # train, val or test, by its folder; train where the folder holds classes alone


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an image, as torchvision's transforms bring it there.

    The fields are arguments of :class:`~lora_mnist.data.Folder`. With ``transform``, only
    ``channels`` of the other fields is used.
    """

    channels: int
    size: tuple[int, int] = (0, 0)  # height and width
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    transform: Callable[[Any], Any] | None = None

    def __call__(self, picture: Image.Image, augment: Augment | None = None) -> Tensor:
        """The image, uint8, (channels, height, width), or the result of ``transform``.

        ``augment`` comes after resizing, but before ``transform``.
        """
        picture = with_eight_bits(picture).convert("RGB" if self.channels == 3 else "L")
        if self.transform is not None:
            image = self.transform(augment(picture) if augment else picture)
            if not isinstance(image, Tensor):
                raise UserError(
                    f"data.transform: gives a {type(image).__name__}; expected a tensor of shape "
                    "(channels, height, width)"
                )
            return image
        # Down, as timm does, but for a share that was rounded: 32 / 0.889 is 36.
        height, width = (math.floor(side / self.crop_pct + 0.02) for side in self.size)
        if self.resize == "crop":  # one side fits; the other is rounded down, as in torchvision
            longer = width * picture.height // picture.width
            width = max(width, height * picture.width // picture.height)
            height = max(height, longer)
        resized: Any = resize(picture, [height, width], InterpolationMode(self.interpolation))
        cropped: Any = center_crop(resized, list(self.size))
        pixels: Tensor = pil_to_tensor(cropped)
        return augment(pixels) if augment else pixels.contiguous()


@dataclass(eq=False)
class ImageFiles(Images):
    """Images on the disk, in ``files`` below ``root``, each read when it is needed."""

    root: Path
    files: Sequence[str]
    labels: Tensor
    prepare: Preparation

    def names(self) -> Sequence[str | int]:
        return self.files

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        if not len(indices):
            if not self.files:
                return torch.empty(0), self.labels
            one, label = self.take([0])
            return one[:0], label[:0]
        images: list[Tensor] = []
        for i in indices:
            path = self.root / self.files[i]
            try:
                images.append(self.prepare(open_picture(path, upright=False), augment))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        return torch.stack(images), self.labels[torch.as_tensor(indices, dtype=torch.int64)]


def part_folders(root: Path) -> dict[Path, str]:
    """The folders that hold classes, and the purpose of their images: train, val or test.

    ValueError, if ``root`` is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"data_dir={root}: expected a folder of images; there is none")
    parts, others = {}, []
    for name in subfolders(root):
        part = _PART_OF.get(name.lower())
        if part and subfolders(root / name):
            parts[root / name] = part
        else:  # without subfolders it is a class, such as pictures of trains
            others.append(name)
    if parts and others:
        log.warning("%s: %s is ignored, as it is no train/, val/ or test/", root, others[0])
    return parts or {root: "train"}


def subfolders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted, without ``.cache`` and ``__MACOSX``."""
    names = [path.name for path in root.glob("*") if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))


def list_entries(root: Path, folders: Mapping[Path, str], classes: Sequence[str]) -> list[Entry]:
    """The image files in ``folders``, by path, as torchvision's ImageFolder lists them."""
    labels = {name: label for label, name in enumerate(classes)}
    entries, others = [], []
    for folder, part in folders.items():
        for file, label in ImageFolder.make_dataset(
            str(folder), labels, is_valid_file=lambda _: True, allow_empty=True
        ):
            path = Path(file).relative_to(root)
            if path.name.startswith("."):  # macOS puts a ._cat.jpg beside cat.jpg
                continue
            if not _is_utf8(path):
                log.warning("%s is left out: its name is not UTF-8", ascii(str(path)))
                continue
            if path.name.lower().endswith(IMG_EXTENSIONS):
                entries.append(Entry(path.as_posix(), label, part))
            else:
                others.append(path)
    if others:
        log.warning(
            "%d files are left out because they are not named as images: %s, ...",
            *(len(others), others[0]),
        )
    return sorted(entries)


def _is_utf8(path: Path) -> bool:
    """Whether a path can be written into a table; the system allows other bytes in it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
