"""MNIST and similar data sets; converts any picture of a digit to MNIST's form.

As MNIST was made, the digit is scaled to fit a box of 20x20 pixels, keeping its aspect ratio, and
moved in a field of 28x28 until its center of mass lies in the center (LeCun et al. 1998,
"Gradient-Based Learning Applied to Document Recognition", section III.A).
"""

from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
import torchvision.datasets
from PIL import Image
from torch import Tensor

from lora_mnist.data.images import Batch
from lora_mnist.data.pictures import Preprocessing, open_picture
from lora_mnist.data.published import Published
from lora_mnist.errors import PictureError, require_choice

#: Classes of ``torchvision.datasets``; mean and deviation of their training pixels, from 0 to 1.
DATASETS = {
    "MNIST": (0.1307, 0.3081),
    "FashionMNIST": (0.2860, 0.3530),
    "KMNIST": (0.1918, 0.3483),
}

#: Sides of a picture and of the digit's box in it; the center of mass of MNIST's images, rounded.
_FIELD, _BOX, _CENTER = 28, 20, 14
# Far more than the box needs, and far less than a photograph has.
_WORKING_SIZE = 256
# Ink below this share of the darkest, such as JPEG's noise, is paper.
_FAINTEST = 0.1


class MNIST(Published):
    """A dataset of the MNIST family; ``options`` are arguments of :class:`.Published`."""

    def __init__(
        self, dataset: str = "MNIST", data_dir: str | Path = "data", **options: Any
    ) -> None:
        require_choice("dataset", dataset, DATASETS)
        self.torchvision_class = getattr(torchvision.datasets, dataset)
        classes = [
            name.partition(" - ")[0] for name in self.torchvision_class.classes
        ]  # 9 of "9 - nine"
        super().__init__(dataset, classes, 1, DATASETS[dataset], data_dir, **options)
        self.folder = self.data_dir / dataset / "raw"
        self.expected = f"the .gz files of {self.torchvision_class.mirrors[0]} in {self.folder}"

    def read_split(self, train: bool) -> Batch:
        try:
            images = self.torchvision_class(self.data_dir, train=train)
        except Exception as error:  # torchvision has no class for missing and damaged files
            raise ValueError(str(error)) from error
        return images.data.unsqueeze(1), images.targets

    def fetch(self) -> None:
        for archive in self.folder.glob("*.gz"):  # a kill may have left it incomplete
            archive.with_suffix("").unlink(missing_ok=True)
        self.torchvision_class(self.data_dir, download=True)

    def read_picture(self, picture: Path | Image.Image) -> Tensor:
        if self.dataset == "MNIST":
            return convert_to_digit(open_picture(picture, upright=True, keeps_alpha=True))
        # Pictures have to be light on black, like the images of these sets.
        prepare = Preprocessing(1, (_FIELD, _FIELD))
        return prepare(open_picture(picture, upright=True))


def convert_to_digit(picture: Image.Image) -> Tensor:
    """Convert a picture into a digit in MNIST's form, (1, 28, 28) uint8, 0 paper, 255 ink.

    A 28x28 picture that already has this form stays unchanged, bit by bit: its ink fits the box,
    and the box is at most a pixel away from its place. All of MNIST's images have it. Any other
    picture, such as a photograph with a black border, is converted.
    """
    has_alpha = picture.has_transparency_data
    picture = picture.convert("RGBA" if has_alpha else "L")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.BILINEAR)
    gray = torch.tensor(numpy.asarray(picture.convert("L"))).float()
    if has_alpha:
        opacity = torch.tensor(numpy.asarray(picture.getchannel("A"))) / 255
        # The paper is transparent: take white paper for dark ink and black paper for light ink.
        is_dark = (gray * opacity).sum() < 127.5 * opacity.sum()
        gray = gray * opacity + (1 - opacity) * (255 if is_dark else 0)
    if _has_form(gray):
        return gray.round().to(torch.uint8)[None]
    border = torch.cat([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ink = gray - border.median()  # the border shows the paper
    if -ink.min() > ink.max():  # dark on light
        ink = -ink
    if ink.max() <= 1e-3 * max(1.0, float(gray.max())):
        raise PictureError("nothing on it")
    ink = ink / ink.max()
    ink[ink < _FAINTEST] = 0
    digit = ink[_find_box(ink)]
    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    box = F.interpolate(digit[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    field = torch.zeros(_FIELD, _FIELD)
    top, left = _find_corner(box.sum(1)), _find_corner(box.sum(0))
    field[top : top + height, left : left + width] = box / box.max()
    return (field * 255).round().to(torch.uint8)[None]


def _has_form(gray: Tensor) -> bool:
    """Return whether a picture, (height, width), has the form of :func:`convert_to_digit`."""
    if gray.shape != (_FIELD, _FIELD) or not gray.any():
        return False
    rows, columns = _find_box(gray)
    box = gray[rows, columns]
    beside = (rows.start - _find_corner(box.sum(1)), columns.start - _find_corner(box.sum(0)))
    return _BOX - 1 <= max(box.shape) <= _BOX and max(map(abs, beside)) <= 1


def _find_box(ink: Tensor) -> tuple[slice, slice]:
    """Return the rows and the columns of the box around all ink."""
    sides = []
    for mass in (ink.amax(1), ink.amax(0)):
        places = mass.nonzero()
        sides.append(slice(int(places.min()), int(places.max()) + 1))
    return sides[0], sides[1]


def _find_corner(mass: Tensor) -> int:
    """Return the start of a box on one axis if its center of mass is in the field's center."""
    center = (mass * torch.arange(len(mass))).sum() / mass.sum()
    return min(max(round(_CENTER - center.item()), 0), _FIELD - len(mass))
