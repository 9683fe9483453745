"""Test images to look at: of each kind those with the most probable predictions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_mnist.data.images import Images, viewable
from lora_mnist.disk.predictions import Columns

_MAX_SHOWN = 16  # images of a kind
_MAX_SIDE = 64  # pixels: of larger images some rows and columns are left out


class Picture(NamedTuple):
    """A test image and what is written beside it."""

    name: str  # its file, or its number in the data set
    label: str
    predictions: list[
        tuple[str, float]
    ]  # class and probability: before and, if there is one, after
    pixels: NDArray[Any]  # uint8, (height, width, 3)


def first_pictures(
    table: Columns, images: Images, classes: Sequence[str]
) -> dict[str, list[Picture]]:
    """The first ``repaired``, ``broken`` and ``wrong`` images, the most probable first.

    The probability is that of the prediction after; for broken images that of the one before, which
    was right. A base alone has only wrong images.
    """
    sides, sort_by = ["before"], {"wrong": "before"}
    if "after" in table:
        sides = ["before", "after"]
        sort_by = {"repaired": "after", "broken": "before", "wrong": "after"}
    names = images.names()
    pictures: dict[str, list[Picture]] = {}
    for kind, side in sort_by.items():
        order = np.argsort(-table[f"{side}_probability"], kind="stable")
        rows = order[table["outcome"][order] == kind]
        pictures[kind] = []
        for row in rows[:_MAX_SHOWN]:
            place = int(table["index"][row])
            predictions = []
            for each in sides:
                predictions.append((classes[table[each][row]], table[f"{each}_probability"][row]))
            pixels = as_rgb(viewable(images.take([place])[0][0]).numpy())
            step = -(-max(pixels.shape[:2]) // _MAX_SIDE)
            label = classes[table["label"][row]]
            picture = Picture(str(names[place]), label, predictions, pixels[::step, ::step])
            pictures[kind].append(picture)
    return pictures


def as_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """An image, (channels, height, width), as (height, width, 3)."""
    pixels = np.moveaxis(pixels, 0, -1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
