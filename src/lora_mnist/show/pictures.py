"""Images of a run: what was repaired and broken, and what the adapter adds, seen as pixels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_mnist.answers import Answers, Gallery
from lora_mnist.show.canvas import BLUE, RED, WIDTH, add_title, cut, figure_of, new_axes, rgb
from lora_mnist.show.spectrum import Update

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 8


def caption(gallery: Gallery, answers: Answers, place: int, classes: Sequence[str]) -> str:
    """Both answers to an image of a gallery, ``4 → 9``; of a base alone ``9: 4``, a 9 as a 4."""
    image = gallery.index[place]
    sides = [answers.base, answers.adapted]
    if answers.adapted is None:
        sides = [answers.label, answers.base]
    first, then = (short_name(classes[int(side[image])]) for side in sides if side is not None)
    return f"{first}: {then}" if answers.adapted is None else f"{first} → {then}"


def short_name(name: str) -> str:
    """``9`` of torchvision's ``9 - nine``."""
    return name.partition(" - ")[0]


def shade(image: Any) -> Any:
    """An image (channels, height, width) as RGB (height, width, 3), uint8."""
    rgb = image if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(rgb[:3].transpose(1, 2, 0))


def draw_gallery(kind: str, gallery: Gallery, answers: Answers, classes: Sequence[str]) -> "Figure":
    """Images in rows, and under each both answers."""
    shown = len(gallery.images)
    captions = [caption(gallery, answers, place, classes) for place in range(shown)]
    told = "what it is, and the answer" if answers.adapted is None else "answers: base → adapted"
    of = f"{shown:,} of {gallery.total:,}" if gallery.total > shown else f"{shown:,}"
    title = f"{of} {kind} image{'' if gallery.total == 1 else 's'}"
    pictures = np.stack([shade(image) for image in gallery.images])
    opaque = np.full((*pictures.shape[:3], 1), 255, dtype=np.uint8)
    return _mosaic(np.concatenate([pictures, opaque], axis=-1), captions, title, told)


def _mosaic(pictures: Any, captions: Sequence[str], title: str, more: str) -> "Figure":
    """RGBA pictures, uint8, (K, height, width, 4), in rows, with captions.

    They are one image to matplotlib, which takes its time for each.
    """
    count, height, width, _ = pictures.shape
    # A picture is framed by nothing, and has room for a line of text below it.
    down, across = round(1.35 * height), round(1.08 * width)
    rows = -(-count // _COLUMNS)
    paper = np.zeros((rows * down, _COLUMNS * across, 4), dtype=np.uint8)
    for place, picture in enumerate(pictures):
        y, x = place // _COLUMNS * down, place % _COLUMNS * across
        paper[y : y + height, x : x + width] = picture
    inches = (WIDTH - 0.25) * rows * down / (_COLUMNS * across)
    axes = new_axes(0.65 + inches, 0.1, top=0.6, bottom=0.05)
    axes.imshow(paper, interpolation="none", aspect="auto")
    for place, text in enumerate(captions):
        y, x = place // _COLUMNS * down + 1.16 * height, place % _COLUMNS * across + width / 2
        axes.text(x, y, text.replace("$", r"\$"), ha="center", va="center", fontsize=8)
    axes.axis("off")
    add_title(axes, title, more)
    return figure_of(axes)


def pixel_layer(updates: Mapping[str, Update], answers: Answers) -> str | None:
    """The adapted layer whose inputs are the pixels of an image, if there is one."""
    shapes = [gallery.images.shape[1:] for gallery in answers.galleries.values()]
    pixels = int(np.prod(shapes[0])) if shapes else 0
    return next((name for name, of in updates.items() if of.lora_A.shape[1] == pixels), None)


def draw_layer(name: str, update: Update, answers: Answers) -> "Figure":
    """Rows of what the adapter adds to the layer that sees the pixels, as images."""
    numbers, rows = update.largest_rows(2 * _COLUMNS)
    shape = next(iter(answers.galleries.values())).images.shape[1:]
    images = rows.reshape(-1, *shape).mean(dim=1).numpy()
    strength = images / (np.abs(images).max() or 1.0)
    colors = np.zeros((*images.shape, 4))
    colors[..., :3] = np.where(strength[..., None] > 0, rgb(RED), rgb(BLUE))
    colors[..., 3] = np.abs(strength)
    title = f"what the adapter adds to {cut(name)}"
    told = "the rows that change most; red: more weight, blue: less"
    captions = [str(int(number)) for number in numbers]
    return _mosaic((255 * colors).astype(np.uint8), captions, title, told)
