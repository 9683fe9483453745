"""Test images to look at: of each kind those with the most probable predictions."""

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from lora_mnist.data.images import Images, viewable
from lora_mnist.disk.predictions import Columns
from lora_mnist.show.figures import png_address

_MAX_SHOWN = 16  # images of a kind
_MAX_SIDE = 64  # pixels


class Picture(NamedTuple):
    """A test image and what is written beside it."""

    name: str  # its file, or its number in the data set
    label: str
    #: Class and probability: before and, if there is one, after.
    predictions: list[tuple[str, float]]
    address: str  # of the image, in a page


def first_pictures(
    table: Columns, images: Images, classes: Sequence[str]
) -> dict[str, list[Picture]]:
    """The first ``broken``, ``wrong`` and ``repaired`` images, the most probable first.

    The probability is that of the prediction after; for broken images that of the one before, which
    was right. A base alone has only wrong images.
    """
    sides, sort_by = ["before"], {"wrong": "before"}
    if "after" in table:
        sides = ["before", "after"]
        sort_by = {"broken": "before", "wrong": "after", "repaired": "after"}
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
            pixels = viewable(images.take([place])[0][0]).movedim(0, -1).numpy()
            image = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            png = BytesIO()
            image.save(png, "PNG")
            label, address = classes[table["label"][row]], png_address(png.getvalue())
            pictures[kind].append(Picture(str(names[place]), label, predictions, address))
    return pictures
