"""Whether an image seems to show one digit, told from its ink.

A classifier answers whatever it is shown: two digits in one picture, and a photo of a cat, are a
digit to it, often with a probability near 1. :func:`doubt` looks at an image in MNIST's form:

- "no digit": at least 120 pixels are of a middle grey, from 20% to 80% of full ink, as in a photo.
  Ink is there or not, and only the edges of strokes are grey.
- "several digits": two connected parts stand side by side, and each is taller than 40% of all the
  ink. The loose bar of a 5 is flat, and the left stroke of an open 4 is short.
- "no digit": parts and holes together are five or more. An 8 has three.

Measured on what :func:`lora_mnist.data.pictures.prepare` makes of pictures:

- MNIST's 10,000 test images: 0.15% get a note, 0.09% of them "several digits". Enlarged by five,
  dark on light (2,000 of them): 0.15%. The test images as they are: 0.31%.
- 3,000 pairs of test images side by side: 99.9% "several digits"; of 800 pairs cut close, 99.9%
  with a gap of 2 pixels of 20, 99.4% with 1, and 88.6% where the digits touch.
- 369 photos, nine of them whole and the rest cut from these: 71% get a note.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

#: The members of the MNIST family that show digits.
DIGITS = ("MNIST", "QMNIST")

NO_DIGIT = "no digit"
SEVERAL = "several digits"

_MIDDLE_GREY = (51, 204)
_MOST_GREY = 120
#: Ink of two digits that touch may be parted by a lighter pixel, that of a faint one be light.
_LEVELS = (64, 128)
_LEAST_HEIGHT = 0.4
_MOST_OVERLAP = 0.5
_MOST_PARTS_AND_HOLES = 4
#: Pixels of a part that is no speck.
_SPECK = 4


class _Part(NamedTuple):
    """Connected pixels, and the box around them; bottom and right are the first beyond it."""

    top: int
    bottom: int
    left: int
    right: int
    pixels: int


def doubt(image: Tensor) -> str | None:
    """Say if an image seems to show no digit, or several.

    Args:
        image: (1, height, width) uint8, 0 for paper and up to 255 for ink; see
            :func:`lora_mnist.data.pictures.prepare`.

    Returns:
        "no digit", "several digits", or ``None`` where nothing speaks against one digit.
    """
    low, high = _MIDDLE_GREY
    if not image.any() or int(((image >= low) & (image <= high)).sum()) >= _MOST_GREY:
        return NO_DIGIT
    ink = [_connected(image[0] >= level, diagonal=True) for level in _LEVELS]
    if any(_are_side_by_side(parts) for parts in ink):
        return SEVERAL
    parts = [part for part in ink[-1] if part.pixels >= _SPECK]
    holes = _holes(image[0] >= _LEVELS[-1])
    return NO_DIGIT if len(parts) + holes > _MOST_PARTS_AND_HOLES else None


def _are_side_by_side(parts: list[_Part]) -> bool:
    """Whether two of ``parts`` are tall, and apart from left to right."""
    if not parts:
        return False
    height = max(part.bottom for part in parts) - min(part.top for part in parts)
    tall = [part for part in parts if part.bottom - part.top > _LEAST_HEIGHT * height]
    for pair in combinations(tall, 2):
        left, right = sorted(pair, key=lambda part: part.left + part.right)
        narrower = min(part.right - part.left for part in pair)
        if left.right - right.left <= _MOST_OVERLAP * narrower:
            return True
    return False


def _holes(is_ink: Tensor) -> int:
    """Parts of the paper that ink encloses."""
    height, width = is_ink.shape
    paper = _connected(~is_ink, diagonal=False)
    return sum(
        part.top > 0 and part.left > 0 and part.bottom < height and part.right < width
        for part in paper
    )


def _connected(mask: Tensor, diagonal: bool) -> list[_Part]:
    """The connected parts of a mask, (height, width) bool, by flood fill."""
    left = {(int(y), int(x)) for y, x in mask.nonzero().tolist()}
    parts = []
    while left:
        todo = [left.pop()]
        pixels = []
        while todo:
            pixel = todo.pop()
            pixels.append(pixel)
            for neighbour in _neighbours(pixel, diagonal):
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        rows, columns = zip(*pixels, strict=True)
        box = (min(rows), max(rows) + 1, min(columns), max(columns) + 1)
        parts.append(_Part(*box, len(pixels)))
    return parts


def _neighbours(pixel: tuple[int, int], diagonal: bool) -> Iterator[tuple[int, int]]:
    y, x = pixel
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if (down or right) and (diagonal or not (down and right)):
                yield y + down, x + right
