"""Any picture of one digit, brought to MNIST's form the way MNIST was made.

The digit is scaled to fit a box of 20x20 pixels, keeping its aspect ratio, with the grey levels
that anti-aliasing gives, and moved in a field of 28x28 until its centre of mass lies in the centre
(LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A).
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

_FIELD = 28
_BOX = 20
# MNIST's own images have their centre of mass at pixel 14, rounded to whole pixels.
_CENTRE = 14
# Far more than the box needs, and far less than a photograph has.
_WORKING_SIZE = 256
# Ink below this share of the darkest, such as JPEG's noise, is paper.
_FAINTEST = 0.1
#: Other formats are left out: EPS, for one, is a program that Ghostscript would run.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_picture(
    path: Path | Image.Image, upright: bool = True, decode: bool = True
) -> Image.Image:
    """A picture, decoded; without ``decode`` only checked, as far as that is quick.

    ``upright`` turns it as its EXIF data say, which torchvision's ImageFolder does not do.
    ValueError, with the reason, if the file cannot be read as a picture.
    """
    try:
        opened: Any = nullcontext(path)
        if not isinstance(path, Image.Image):
            opened = Image.open(path, formats=_FORMATS)
        with opened as file:
            picture: Image.Image = ImageOps.exif_transpose(file) if upright and decode else file
            if decode:
                picture.load()
            else:
                picture.verify()
    except Exception as error:  # Pillow has no common class for damaged files
        raise ValueError(f"no readable picture ({type(error).__name__})") from error
    if picture.mode == "F":
        raise ValueError("no readable picture (floating-point pixels)")
    return picture


def with_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with eight bits a channel: of 16, the upper eight. Pillow would clip them at 255.

    ValueError, if it has more than 16 bits.
    """
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = numpy.asarray(picture).astype(numpy.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("no readable picture (more than 16 bits a pixel)")
    return Image.fromarray((values >> 8).astype(numpy.uint8))


def prepare(picture: Image.Image) -> Tensor:
    """A digit in MNIST's form, (1, 28, 28) uint8, 0 for paper and up to 255 for ink.

    It may be dark on light or light on dark. A picture that has this form already stays as it is.
    ValueError, if the picture is empty.
    """
    grey = _grey_levels(picture)
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if picture.mode == "L" and grey.shape == (_FIELD, _FIELD) and not border.any() and grey.any():
        return grey.to(torch.uint8)[None]
    ink = grey - border.median()  # the border shows the paper
    if -ink.min() > ink.max():  # dark on light
        ink = -ink
    if ink.max() <= 1e-3 * max(1.0, float(grey.max())):
        raise ValueError("nothing on it")
    ink = ink / ink.max()
    ink[ink < _FAINTEST] = 0
    rows, columns = ink.amax(1).nonzero(), ink.amax(0).nonzero()
    digit = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    box = F.interpolate(digit[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    field = torch.zeros(_FIELD, _FIELD)
    top, left = _corner(box.sum(1)), _corner(box.sum(0))
    field[top : top + height, left : left + width] = box / box.max()
    return (field * 255).round().to(torch.uint8)[None]


def _corner(mass: Tensor) -> int:
    """Where a box begins on one axis of the field, so that its centre of mass is in the centre."""
    centre = (mass * torch.arange(len(mass))).sum() / mass.sum()
    return min(max(round(_CENTRE - centre.item()), 0), _FIELD - len(mass))


def _grey_levels(picture: Image.Image) -> Tensor:
    """The grey levels, (height, width) float32, at most 256 on a side, without transparency."""
    if picture.mode.startswith("I"):  # 16 bits and more, which Pillow would clip at 255
        picture = picture.convert("I").convert("F")
    else:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "L")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.BILINEAR)
    grey = torch.tensor(numpy.asarray(picture.convert("L" if picture.mode == "RGBA" else "F")))
    if picture.mode != "RGBA":
        return grey
    opacity = torch.tensor(numpy.asarray(picture.getchannel("A"))) / 255
    # The paper is transparent: take white paper for dark ink and black paper for light ink.
    is_dark = (grey * opacity).sum() < 127.5 * opacity.sum()
    return grey * opacity + (1 - opacity) * (255 if is_dark else 0)
