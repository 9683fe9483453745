"""The README's first picture: the naive repair and ``experiment=repair``, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Gallery, read_answers
from lora_mnist.show.canvas import GREEN, INK, RED, STYLE, figure_of, new_axes
from lora_mnist.show.charts import draw_errors
from lora_mnist.show.pictures import draw_gallery
from lora_mnist.show.verdict import verdict
from lora_mnist.sweep.records import read_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: 900 pixels wide it is shown at half its size.
_DPI = 196
_GAP = 24
_SHOWN = 8
_COLORS = {"good": GREEN, "bad": RED}


def draw_before_after(folders: Mapping[str, Path], path: Path) -> None:
    """Draw runs side by side: what each did, its errors, some images it repaired and broke.

    The paper is white, whatever the page around it is.

    Args:
        folders: of the runs, by title.
        path: the PNG file to write.

    Raises:
        ValueError: if a folder is not that of a repair.
        OSError: if the picture cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        columns = [_column(title, folder) for title, folder in folders.items()]
        _share_scale([figures[1] for figures in columns])
        pixels = [_below_each_other([_pixels(f) for f in figures]) for figures in columns]
    height = max(len(column) for column in pixels)
    paper = [np.pad(c, ((0, height - len(c)), (0, 0), (0, 0)), constant_values=255) for c in pixels]
    gap = np.full((height, _GAP, 3), 255, dtype=np.uint8)
    sides = [part for column in paper for part in (gap, column)][1:]
    with atomic_write(path) as temporary:
        Image.fromarray(np.concatenate(sides, axis=1)).save(temporary, "PNG", optimize=True)


def _column(title: str, folder: Path) -> list["Figure"]:
    results, answers = read_results(folder), read_answers(folder)
    if results is None or answers is None or "test_base" not in results:
        raise ValueError(f"{folder}: expected the folder of a repair, with its answers")
    classes = [str(name) for name in results["classes"]]
    galleries = {kind: _few(gallery) for kind, gallery in answers.galleries.items()}
    figures = [_heading(title, results), draw_errors(results, classes)]
    for kind, gallery in galleries.items():
        if gallery.total:
            figures.append(draw_gallery(kind, gallery, answers, classes))
    return figures


def _few(gallery: Gallery) -> Gallery:
    """The first row of a gallery."""
    return replace(gallery, index=gallery.index[:_SHOWN], images=gallery.images[:_SHOWN])


def _heading(title: str, results: Mapping[str, Any]) -> "Figure":
    """The title, and the verdict below it, a phrase a line; advice is for the terminal."""
    phrases = [phrase for phrase in verdict(results) if phrase.mood != "advice"]
    height = 0.45 + 0.2 * len(phrases)
    axes = new_axes(height, 0.1, top=0.1, bottom=0.1)
    axes.axis("off")
    figure = figure_of(axes)
    figure.text(0.02, 1 - 0.1 / height, title, fontsize=13, fontweight="bold", va="top")
    for line, phrase in enumerate(phrases):
        y = 1 - (0.4 + 0.2 * line) / height
        color = _COLORS.get(phrase.mood, INK)
        figure.text(0.02, y, phrase.text, fontsize=10, va="top", color=color)
    return figure


def _share_scale(charts: Sequence["Figure"]) -> None:
    """Bars of one length mean one number of errors."""
    longest = max(chart.axes[0].get_xlim()[1] for chart in charts)
    for chart in charts:
        chart.axes[0].set_xlim(0, longest)


def _pixels(figure: "Figure") -> Any:
    """A figure as RGB, uint8, (height, width, 3)."""
    figure.set_dpi(_DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _below_each_other(parts: Sequence[Any]) -> Any:
    return np.concatenate(list(parts), axis=0)
