"""Any picture of one digit, brought to MNIST's form the way MNIST was made.

The digit is scaled to fit a box of 20x20 pixels, keeping its aspect ratio, with the grey levels
that anti-aliasing gives, and moved in a field of 28x28 until its centre of mass lies in the centre
(LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A).
Before that comes what NIST's scanner did for MNIST: ink is told from paper.
"""

from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

_FIELD = 28
_BOX = 20
# In MNIST's own images the centre of mass lies at pixel 14, to the rounding of whole pixels.
_CENTRE = 14
# Enough to tell ink from paper and far more than the box needs; a photograph has 100 times as many.
_WORKING_SIZE = 256
#: Pillow knows more; one of them, EPS, is a program that Ghostscript would run.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_picture(path: Path, upright: bool = True, decode: bool = True) -> Image.Image:
    """A picture, decoded; without ``decode`` only checked, as far as that is quick.

    ``upright`` turns it as its EXIF data say, which torchvision's ImageFolder does not. ValueError,
    saying why, if the file cannot be read as a picture.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            picture = ImageOps.exif_transpose(file) if upright and decode else file
            if decode:
                picture.load()
            else:
                picture.verify()
    # Pillow has no common class for what a damaged file causes.
    except Exception as error:
        raise ValueError(f"no readable picture ({type(error).__name__})") from error
    if picture.mode == "F":
        raise ValueError("no readable picture (floating-point pixels)")
    return picture


def prepare(picture: Image.Image) -> Tensor:
    """A digit in MNIST's form, (1, 28, 28) uint8, 0 for paper and up to 255 for ink.

    It may be dark on light or light on dark, and the paper unevenly lit. ValueError, if there is
    nothing on it.
    """
    ink = _ink(_grey_levels(picture))
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
    # There is no paper under the ink: take white under dark ink and black under light ink.
    is_dark = (grey * opacity).sum() < 127.5 * opacity.sum()
    return grey * opacity + (1 - opacity) * (255 if is_dark else 0)


def _ink(grey: Tensor) -> Tensor:
    """How much ink each pixel has, 0 to 1; paper is what the border shows."""
    contrast = grey - _paper(grey) if grey.max() > grey.min() else torch.zeros_like(grey)
    low, high = contrast.min().item(), contrast.max().item()
    if high - low <= 1e-3 * max(1.0, grey.max().item()):
        raise ValueError("nothing on it")
    if -low > high:  # dark on light
        contrast, low, high = -contrast, -high, -low
    # The threshold with the largest variance between its two sides (Otsu 1979).
    counts = torch.histc(contrast, 256, low, high)
    middles = torch.linspace(low, high, 257)[:-1] + (high - low) / 512
    below, above = counts.cumsum(0), counts.sum() - counts.cumsum(0)
    sums = (counts * middles).cumsum(0)
    difference = sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)
    threshold = middles[(below * above * difference**2).argmax()]
    full = contrast[contrast > threshold].median()
    # Anti-aliased edges keep their grey; noise of the paper, below half the threshold, is gone.
    ink = ((contrast - threshold / 2) / (full - threshold / 2)).clamp(0, 1)
    return ink * _near_strokes(contrast > threshold)


def _paper(grey: Tensor) -> Tensor:
    """The light on the empty sheet: a quadratic surface through all that is no ink."""
    height, width = grey.shape
    grey = grey.double()
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1).double()
    is_paper = torch.ones(height, width, dtype=torch.bool)
    margin = max(1, round(0.04 * min(height, width)))
    is_paper[margin:-margin, margin:-margin] = False
    # A picture may be cut close to the digit: what is far from the border's median is not paper.
    contrast = grey.max() - grey.min()
    level = grey[is_paper].median()
    is_paper &= (grey - level).abs() <= contrast / 2
    surface = level.expand(height, width)
    for _ in range(3):
        if is_paper.sum() < 50:  # too few to say more than their level
            break
        known = terms[is_paper]
        surface = terms @ torch.linalg.pinv(known.T @ known) @ (known.T @ grey[is_paper])
        distance = (grey - surface).abs()
        is_paper = distance <= 3 * distance[is_paper].median() + 0.05 * contrast
    return surface.float()


def _near_strokes(strokes: Tensor) -> Tensor:
    """Which pixels belong to the digit: to strokes of some size and their edges, not to specks.

    Every cell of a stroke takes the largest number among its neighbours until nothing changes, so
    that each connected part ends with one number.
    """
    # Cells of a few pixels: many times fewer steps, and a gap that small still connects.
    side = max(1, max(strokes.shape) // 64)
    cells = F.max_pool2d(strokes[None].float(), side, ceil_mode=True)
    labels = torch.arange(1.0, cells.numel() + 1).view(cells.shape) * cells
    while not torch.equal(spread := _grow(labels) * cells, labels):
        labels = spread
    numbers, sizes = torch.unique(labels[cells > 0], return_counts=True)
    large = torch.isin(labels, numbers[sizes >= 0.05 * sizes.max()]).float()
    height, width = strokes.shape
    pixels = large.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
    return _grow(pixels * strokes)[0]


def _grow(image: Tensor) -> Tensor:
    """Each pixel takes the largest value among itself and its neighbours; shape (1, H, W)."""
    return F.max_pool2d(image, 3, stride=1, padding=1)
