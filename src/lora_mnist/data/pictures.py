"""Any picture of one digit, brought to MNIST's form the way MNIST was made.

The digit is scaled to fit a box of 20x20 pixels, keeping its aspect ratio, with the grey levels
that anti-aliasing gives, and moved in a field of 28x28 until its centre of mass lies in the centre
(LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A).
Before that comes what NIST's scanner did for MNIST: ink is told from paper.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
# Photographs of today's phones have 12 to 50 million; decoded, this many take 0.3 GB.
MOST_PIXELS = 64 << 20
#: Pillow knows more; one of them, EPS, is a program that Ghostscript would run.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# A picture with more is reduced before it becomes floating-point numbers.
_MANY_PIXELS = 16 << 20
_LARGEST_LEVEL = 2**32


def read_image(path: Path) -> Tensor:
    """The grey levels of a picture, (height, width) float32, upright and without transparency.

    Raises:
        ValueError: if the file cannot be read as a picture, or has too many pixels.
    """
    return grey_levels(open_picture(path))


def open_picture(path: Path, upright: bool = True) -> Image.Image:
    """A decoded picture.

    Args:
        path: of the file.
        upright: turn it as its EXIF data say; else leave it as the camera's sensor saw it.

    Raises:
        ValueError: if the file cannot be read as a picture, or has too many pixels.
    """
    with _opened(path) as file:
        picture = ImageOps.exif_transpose(file) if upright else file
        picture.load()
    return picture


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture in pixels; it is not decoded.

    Raises:
        ValueError: if the file cannot be read as a picture, or has too many pixels.
    """
    with _opened(path) as file:
        return file.height, file.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting
            raise _RefusedError("no readable picture (not a file)")
        with Image.open(path, formats=_FORMATS) as file:
            # Known before anything is decoded: a small file may unfold to gigabytes.
            _require_few(file.width * file.height)
            yield file
    except _RefusedError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"too many pixels; expected at most {MOST_PIXELS:,}") from error
    # Pillow has no common class for what a damaged file causes.
    except Exception as error:
        raise ValueError(f"no readable picture ({type(error).__name__})") from error


def _require_few(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise _RefusedError(f"{pixels:,} pixels; expected at most {MOST_PIXELS:,}")


class _RefusedError(ValueError):
    """A picture that is not decoded: it would take too long, or too much memory."""


def grey_levels(picture: Image.Image) -> Tensor:
    """The grey levels of ``picture``, (height, width) float32, without transparency."""
    if picture.mode.startswith(("I", "F")):  # 16 bits and more, which Pillow would clip at 255
        if picture.mode != "F":
            picture = picture.convert("I")
        return torch.from_numpy(numpy.array(_halved(picture), dtype=numpy.float32))
    if not picture.has_transparency_data:
        return _levels(_halved(picture.convert("L")))
    layers = _halved(picture.convert("RGBA"))
    grey, opacity = _levels(layers.convert("L")), _levels(layers.getchannel("A")) / 255
    # There is no paper under the ink: take white under dark ink and black under light ink.
    is_dark = (grey * opacity).sum() < 127.5 * opacity.sum()
    return grey * opacity + (1 - opacity) * (255 if is_dark else 0)


def _halved(picture: Image.Image) -> Image.Image:
    """``picture`` at a half, a third, ... of its size if it is large, to save memory."""
    factor = 1
    while picture.width * picture.height > _MANY_PIXELS * factor**2:
        factor += 1
    return picture.reduce(factor) if factor > 1 else picture


def _levels(picture: Image.Image) -> Tensor:
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(picture.height, picture.width).float()


def prepare(grey: Tensor) -> Tensor:
    """A digit in MNIST's form, (1, 28, 28) uint8, 0 for paper and up to 255 for ink.

    Args:
        grey: (height, width), dark on light or light on dark, on any scale; the paper may be
            unevenly lit.

    Raises:
        ValueError: if there is nothing on the paper, or a level is not a finite number.
    """
    if not grey.numel():
        raise ValueError("nothing on it")
    if not grey.isfinite().all():
        raise ValueError("not every pixel is a finite number")
    ink = _ink(_shrink(_in_range(grey.float())))
    rows, columns = ink.amax(1).nonzero(), ink.amax(0).nonzero()
    digit = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = _BOX / max(digit.shape)
    height, width = (max(1, round(side * scale)) for side in digit.shape)
    box = _resize(digit, height, width)
    box = box / box.max()
    field = torch.zeros(_FIELD, _FIELD)
    top, left = _corner(box.sum(1)), _corner(box.sum(0))
    field[top : top + height, left : left + width] = box
    return (field * 255).round().to(torch.uint8)[None]


def _in_range(grey: Tensor) -> Tensor:
    """``grey``, scaled where its squares would leave the range of float32."""
    largest = grey.abs().max()
    return grey * (255 / largest) if largest > _LARGEST_LEVEL else grey


def _corner(mass: Tensor) -> int:
    """Where a box begins on one axis of the field, so that its centre of mass is in the centre."""
    centre = (mass * torch.arange(len(mass))).sum() / mass.sum()
    return min(max(round(_CENTRE - centre.item()), 0), _FIELD - len(mass))


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(
        image[None, None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0, 0]


def _shrink(grey: Tensor) -> Tensor:
    scale = _WORKING_SIZE / max(grey.shape)
    if scale >= 1:
        return grey
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    return _resize(grey, height, width)


def _ink(grey: Tensor) -> Tensor:
    """How much ink each pixel has, 0 to 1; paper is what the border shows."""
    contrast = grey - _paper(grey)
    low, high = contrast.min(), contrast.max()
    if high - low <= 1e-3 * max(1.0, grey.abs().max().item()):
        raise ValueError("nothing on it")
    if -low > high:  # dark on light
        contrast = -contrast
    threshold = _otsu(contrast)
    full = contrast[contrast > threshold].median()
    # Anti-aliased edges keep their grey; noise of the paper, below half the threshold, is gone.
    ink = ((contrast - threshold / 2) / (full - threshold / 2)).clamp(0, 1)
    return ink * _connected(contrast > threshold, ink > 0)


def _paper(grey: Tensor) -> Tensor:
    """The light on the empty sheet: a quadratic surface through all that is no ink."""
    height, width = grey.shape
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1).double()
    grey = grey.double()
    is_paper = torch.zeros(height, width, dtype=torch.bool)
    margin = max(1, round(0.04 * min(height, width)))
    is_paper[:margin] = is_paper[-margin:] = True
    is_paper[:, :margin] = is_paper[:, -margin:] = True
    # A picture may be cut close to the digit: what is far from the border's median is not paper.
    border = grey[is_paper]
    is_paper &= (grey - border.median()).abs() <= (grey.max() - grey.min()) / 2
    surface = border.median().expand(height, width)
    for _ in range(3):
        if is_paper.sum() < 50:  # too few to say more than their level
            break
        known = terms[is_paper]
        surface = terms @ torch.linalg.pinv(known.T @ known) @ (known.T @ grey[is_paper])
        distance = (grey - surface).abs()
        spread = 3 * distance[is_paper].median() + 0.05 * (grey.max() - grey.min())
        is_paper = distance <= spread
    return surface.float()


def _otsu(values: Tensor) -> Tensor:
    """The threshold with the largest variance between its two sides (Otsu 1979)."""
    low, high = values.min().item(), values.max().item()
    counts = torch.histc(values, 256, low, high)
    middles = torch.linspace(low, high, 257)[:-1] + (high - low) / 512
    below, above = counts.cumsum(0), counts.sum() - counts.cumsum(0)
    sums = (counts * middles).cumsum(0)
    difference = sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)
    return middles[(below * above * difference**2).argmax()]


def _connected(strokes: Tensor, ink: Tensor) -> Tensor:
    """Which pixels belong to the digit: to strokes of some size, and not to specks.

    Every cell of a stroke takes the largest number among its neighbours until nothing changes, so
    that each connected part ends with one number.
    """
    # Cells of a few pixels: many times fewer steps, and a gap that small still connects.
    side = max(1, max(strokes.shape) // 64)
    cells = F.max_pool2d(strokes[None, None].float(), side, ceil_mode=True)[0, 0]
    labels = torch.arange(1.0, cells.numel() + 1).view(cells.shape) * cells
    while True:
        spread = _grow(labels) * cells
        if torch.equal(spread, labels):
            break
        labels = spread
    names, sizes = torch.unique(labels[cells > 0], return_counts=True)
    kept = torch.isin(labels, names[sizes >= 0.05 * sizes.max()]).float()
    height, width = strokes.shape
    pixels = kept.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
    return _grow(pixels * strokes) * ink


def _grow(image: Tensor) -> Tensor:
    return F.max_pool2d(image[None, None], 3, stride=1, padding=1)[0, 0]
