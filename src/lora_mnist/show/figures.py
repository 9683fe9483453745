"""Figures of a run, from its results and predictions, and of a sweep."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.numbers import numeric_sort_key
from lora_mnist.disk.predictions import Columns
from lora_mnist.show.changes import named, others_of

#: With more lines no reader could tell them apart: then there is no legend, or there are points.
_MAX_LINES = 10

#: For functions that draw: a dollar in a name begins no formula.
_plain_text = matplotlib.rc_context({"text.parse_math": False})


def save_figure(figure: Figure, path: Path) -> str:
    """Write a PNG file, whole or not at all; return it as the address of an image in a page."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return png_address(path.read_bytes())


def png_address(png: bytes) -> str:
    """The content of a PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@_plain_text
def draw_dial(results: Mapping[str, Any]) -> Figure:
    """Validation errors on what is to be repaired against its price, or all over the scale.

    The price is errors elsewhere and, beside it, false calls.
    """
    dial = results["dial"]
    base, advised = dial["scales"].index(0), dial["scales"].index(dial["advised"])
    up, ylabel, prices = "errors", "errors on all classes", {"scales": "scale"}
    if results["targets"]:
        name = _shortened(named(results["classes"], results["targets"]), 40)
        up, ylabel = "errors_of_target", f"errors on {name}"
        prices = {
            "errors_elsewhere": f"errors on {others_of(results['classes'])}",
            "false_calls_of_target": f"false calls of {name}",
        }
    figure = Figure(figsize=(9, 5), layout="constrained")
    title = f"scales from 0, the base, to {dial['scales'][-1]:g}"
    figure.suptitle(f"{title}; {dial['images']:,} validation images")
    panels = figure.subplots(1, len(prices), sharey=True, squeeze=False)[0]
    panels[0].set_ylabel(ylabel)
    for axes, (across, xlabel) in zip(panels, prices.items(), strict=True):
        axes.set_xlabel(xlabel)
        points = list(zip(dial[across], dial[up], strict=True))
        axes.plot(dial[across], dial[up], "o-", label="adapter")
        for scale, point in zip(dial["scales"], points, strict=True):
            axes.annotate(f"{scale:g}", point, (4, 5), textcoords="offset points")
        axes.plot(*points[advised], "*", ms=15, label=f"advised: scale {dial['advised']:g}")
        axes.plot(*points[base], "ks", label="base")
        if across == "errors_elsewhere":
            label = "as many errors in all as the base"
            axes.axline(points[base], slope=-1, color="gray", ls="--", label=label)
        axes.set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=2, loc="outside lower center")
    return figure


@_plain_text
def draw_confusion(table: Columns, classes: Sequence[str]) -> Figure:
    """How many images of each class get each prediction, or how an adapter changes that."""
    title, sign = "images of each class by their prediction\ngreen: right, pink: wrong", ""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (table["label"], table["before"]), 1)
    if "after" in table:
        title, sign = "what changed: images, after - before\ngreen: better, pink: worse", "+"
        counts = -counts
        np.add.at(counts, (table["label"], table["after"]), 1)
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="prediction", ylabel="label")
    good = np.where(np.eye(len(counts), dtype=bool), counts, -counts)
    # On a linear scale with thousands of right predictions the few wrong ones would not be seen.
    limit = 2 * max(int(np.abs(counts).max()), 1)  # pale colours, on which numbers can be read
    axes.imshow(good, "PiYG", norm=AsinhNorm(10, vmin=-limit, vmax=limit))
    for row, column in np.argwhere(counts).tolist():
        text = f"{counts[row, column]:{sign},}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(counts)), [_shortened(name) for name in classes])
    axes.set_xticks(range(len(counts)), [_shortened(name, 6) for name in classes])
    return figure


@_plain_text
def draw_sweep(points: Sequence[tuple[dict[str, str], float, float | None]], metric: str) -> Figure:
    """``metric`` over the key with most values, with a line for all other keys.

    A point has what was swept, the metric's mean over the seeds, and its standard deviation.
    """
    values = {}
    for key in points[0][0]:
        values[key] = sorted({swept[key] for swept, _, _ in points}, key=numeric_sort_key)
    across = max(values, key=lambda key: len(values[key]))
    lines: dict[str, list[Any]] = {}
    for point in sorted(points, key=lambda point: numeric_sort_key(point[0][across])):
        others = [f"{key}={value}" for key, value in point[0].items() if key != across]
        lines.setdefault(", ".join(others), []).append(point)
    style = "o-"
    if len(lines) > _MAX_LINES:
        lines, style = {"": list(points)}, "o"
    # Few values, or texts, stand side by side; many numbers have an axis.
    texts = values[across]
    is_axis = len(texts) > _MAX_LINES and not any(numeric_sort_key(text)[0] for text in texts)
    places = {text: float(text) if is_axis else place for place, text in enumerate(texts)}
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=metric)
    if not is_axis:
        axes.set_xticks(range(len(texts)), texts)
    for label, line in lines.items():
        x = [places[swept[across]] for swept, _, _ in line]
        y = [value for _, value, _ in line]
        axes.errorbar(x, y, [std or 0.0 for _, _, std in line], fmt=style, label=label)
    if len(lines) > 1:
        figure.legend(ncols=2, loc="outside lower center")
    return figure


def _shortened(name: str, most: int = 17) -> str:
    """``name`` without its middle, where it is longer than ``most`` characters."""
    end = most // 2
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
