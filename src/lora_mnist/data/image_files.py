"""Image files in folders of classes: listed, and prepared as torchvision does it."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from lora_mnist.data.images import Augment
from lora_mnist.data.pictures import open_picture
from lora_mnist.errors import UserError

log = logging.getLogger(__name__)

#: The purpose of the images in a folder, by its name in lower case.
_PART_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


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
        picture = picture.convert("RGB" if self.channels == 3 else "L")
        if self.transform is not None:
            image = self.transform(augment(picture) if augment else picture)
            if not isinstance(image, Tensor):
                raise UserError(
                    f"prepare.transform: gives a {type(image).__name__}; expected a tensor of "
                    "shape (channels, height, width)"
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

    def read(self, path: Path, augment: Augment | None = None) -> Tensor:
        """The image of a file; ``ValueError``, which names it, if it cannot be read."""
        try:
            return self(open_picture(path), augment)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def class_names(root: Path) -> list[str]:
    """The names of the folders of classes, sorted; ValueError, if there are not two of them."""
    names = {name for folder in _part_folders(root) for name in _subfolders(folder)}
    if len(names) < 2:
        raise ValueError(f"data_dir={root}: expected a folder for each of two classes")
    return sorted(names)


def list_entries(root: Path, classes: list[str]) -> list[Entry]:
    """The image files in the folders of ``classes``, by path, as torchvision lists them."""
    labels = {name: label for label, name in enumerate(classes)}
    entries, others = [], []
    for folder, part in _part_folders(root).items():
        for file, label in ImageFolder.make_dataset(
            str(folder), labels, is_valid_file=lambda _: True, allow_empty=True
        ):
            path = Path(file).relative_to(root)
            if path.name.startswith("."):  # macOS puts a ._cat.jpg beside cat.jpg
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


def _part_folders(root: Path) -> dict[Path, str]:
    """The folders that hold classes, and the purpose of their images: train, val or test.

    Without subfolders, ``train`` is a class, of trains.
    """
    parts, others = {}, []
    for name in _subfolders(root):
        part = _PART_OF.get(name.lower())
        if part and _subfolders(root / name):
            parts[root / name] = part
        else:
            others.append(name)
    if parts and others:
        log.warning("%s: %s is ignored, as it is no train/, val/ or test/", root, others[0])
    return parts or {root: "train"}


def _subfolders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted, without ``.cache`` and ``__MACOSX``."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))
