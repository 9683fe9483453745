"""Images in rows: what a run repaired and broke, what its adapter adds, what pictures show."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lora_mnist.disk.predictions import Answers, Gallery
from lora_mnist.show.canvas import BLUE, INK, RED, WIDTH, add_title, cut, figure_of, new_axes, rgb
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


def draw_predictions(
    images: Sequence[Any], predictions: Sequence[Mapping[str, Any]], title: str
) -> Image.Image:
    """Pictures as the network saw them, in rows: name, answers with probabilities, and note.

    Args:
        images: what the network was given, uint8 arrays, (channels, height, width).
        predictions: what :func:`lora_mnist.predict.predict` returns for them, in their order.
        title: stands on top.

    Returns:
        An RGB picture, at most 1,200 pixels wide; long names leave room for less than ten in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [_label(found) for found in predictions]
    across = max(_CELL, _CHARACTER * max(len(text) for label in labels for text, _ in label))
    columns = min(len(images), _WIDEST // across)
    down = _SIDE + (max(map(len, labels)) + 1) * _LINE
    width = max(columns * across, _NARROWEST)
    height = _HEAD + -(-len(images) // columns) * down
    paper = np.full((height, width, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        at = (x / width, 1 - y / height, text.replace("$", r"\$"))
        figure.text(*at, **{"va": "top", "color": INK, **style})

    write(12, 10, title, fontsize=11)
    if differing := sum(map(_differs, predictions)):
        write(12, 30, f"≠ base and adapted differ: {differing:,}", fontsize=9, color=RED)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = place % columns * across, _HEAD + place // columns * down
        picture = _fitted(shade(image))
        left, top = x + (across - picture.shape[1]) // 2, y + (_SIDE - picture.shape[0]) // 2
        paper[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        for number, (text, style) in enumerate(label):
            below = y + _SIDE + 4 + number * _LINE
            write(x + across / 2, below, text, ha="center", fontsize=8, **style)
    figure.figimage(paper)
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


#: Pixels, in :func:`draw_predictions`: of a cell's width, the image in it, a line and a letter.
_CELL, _SIDE, _LINE, _CHARACTER = 120, 98, 14, 7
#: Of the page, which has room for a title, and of what stands on top.
_WIDEST, _NARROWEST, _HEAD = 1200, 480, 52
_DPI = 100
_LONGEST_NAME = 17


def _label(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The lines below an image, and how each is written."""
    sides = [side for side in ("base", "adapted") if side in found]
    lines: list[tuple[str, dict[str, Any]]] = [
        (_shortened(PurePath(found["file"]).name, _LONGEST_NAME), {})
    ]
    for side in sides:
        name = _shortened(short_name(found[side]["class"]), _LONGEST_NAME)
        answer = f"{name}  {found[side]['probability']:.2f}"
        lines.append((f"{side} {answer}" if len(sides) > 1 else answer, {}))
    if _differs(found):
        lines[-1] = (f"{lines[-1][0]} ≠", {"color": RED, "weight": "bold"})
    if found.get("note"):
        lines.append((f"({found['note']})", {"style": "italic"}))
    return lines


def _differs(found: Mapping[str, Any]) -> bool:
    return "adapted" in found and bool(found["adapted"]["class"] != found["base"]["class"])


def _shortened(name: str, most: int) -> str:
    """``name`` without its middle, where it is longer than ``most`` characters."""
    if len(name) <= most:
        return name
    end = most // 2
    return f"{name[: most - end - 1]}…{name[-end:]}"


def _fitted(picture: Any) -> Any:
    """A picture, (height, width, 3), as large as a cell allows; small ones keep their pixels."""
    height, width, _ = picture.shape
    factor = _SIDE / max(height, width)
    if factor >= 1:
        return picture.repeat(int(factor), axis=0).repeat(int(factor), axis=1)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
