"""Any picture of one digit, brought to MNIST's form the way MNIST was made.

The digit is scaled to fit a box of 20x20 pixels, keeping its aspect ratio, with the grey levels
that anti-aliasing gives, and moved in a field of 28x28 until its centre of mass lies in the centre
(LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A).
"""

from pathlib import Path

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
    picture: Path | Image.Image, upright: bool = False, decode: bool = True
) -> Image.Image:
    """A picture, decoded, with eight bits a channel; without ``decode`` only checked, if quickly.

    Of 16 bits the upper eight are taken: Pillow would clip them at 255. ``upright`` turns it as its
    EXIF data say. ValueError, with the reason, if a file cannot be read as a picture.
    """
    try:
        if isinstance(picture, Path):
            picture = Image.open(picture, formats=_FORMATS)
        if not decode:
            picture.verify()
            return picture
        if upright:
            picture = ImageOps.exif_transpose(picture)
        picture.load()
    except Exception as error:  # Pillow has no common class for damaged files
        raise ValueError(f"no readable picture ({type(error).__name__})") from error
    if picture.mode == "F":
        raise ValueError("no readable picture (floating-point pixels)")
    if picture.mode.startswith("I"):
        values = numpy.asarray(picture).astype(numpy.int64) >> 8
        picture = Image.fromarray(values.clip(0, 255).astype(numpy.uint8))
    return picture


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
    picture = picture.convert("RGBA" if picture.has_transparency_data else "L")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.BILINEAR)
    grey = torch.tensor(numpy.asarray(picture.convert("L"))).float()
    if picture.mode == "L":
        return grey
    opacity = torch.tensor(numpy.asarray(picture.getchannel("A"))) / 255
    # The paper is transparent: take white paper for dark ink and black paper for light ink.
    is_dark = (grey * opacity).sum() < 127.5 * opacity.sum()
    return grey * opacity + (1 - opacity) * (255 if is_dark else 0)
