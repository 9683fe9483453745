"""Figures of a run, from its results, its predictions and some test images; and of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import AsinhNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Columns
from lora_mnist.show.changes import named, others_of
from lora_mnist.show.class_table import listed_classes
from lora_mnist.sweep.jobs import numeric_sort_key

if TYPE_CHECKING:  # a sweep's report needs no torch
    from lora_mnist.show.pictures import Picture

#: The figures' folder in a run's folder.
FIGURES = "figures"
_GRAY, _BLUE, _GREEN, _RED = "#9aa3ad", "#2f7fc1", "#2a9d5c", "#d1495b"
#: matplotlib's settings while a figure is drawn.
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar in a name begins no formula
}

_WIDTH = 6.0  # inches
#: With more classes the numbers in a matrix could not be read.
_MAX_IN_MATRIX = 12
_COLUMNS = 8
#: With more lines no reader could tell them apart: then they have no colours, or are points.
_MAX_LINES = 10


def draw_run(
    folder: Path,
    results: Mapping[str, Any],
    table: Columns,
    pictures: "Mapping[str, Sequence[Picture]]",
) -> dict[str, Figure]:
    """Draw all figures of a run, and write them into its ``folder`` in place of earlier ones."""
    classes = results["classes"]
    figures = {}
    if listed_classes(results):
        figures["errors"] = draw_errors(results)
    if results.get("dial"):
        figures["dial"] = draw_dial({"adapter": results["dial"]}, "adapter", results)
    for kind, shown in pictures.items():
        if shown:
            count = int(np.count_nonzero(table["outcome"] == kind))
            figures[kind] = draw_gallery(kind, shown, count)
    if len(classes) <= _MAX_IN_MATRIX:
        figures["confusion"] = draw_confusion(table, classes)
    for path in (folder / FIGURES).glob("*.png"):
        path.unlink()
    for name, figure in figures.items():
        save_figure(figure, folder / FIGURES / f"{name}.png")
    return figures


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


@matplotlib.rc_context(_STYLE)
def draw_errors(results: Mapping[str, Any]) -> Figure:
    """Bars of each class's errors before and after; of many classes those that changed most."""
    bars_of = {"errors": (results["test"]["errors_per_class"], _GRAY)}
    if "test_base" in results:
        bars_of = {
            "before": (results["test_base"]["errors_per_class"], _GRAY),
            "after": (results["test"]["errors_per_class"], _BLUE),
        }
    numbers = listed_classes(results)
    figure = Figure(figsize=(_WIDTH, 1 + 0.36 * len(numbers)), layout="constrained")
    axes = figure.subplots()
    places: NDArray[Any] = np.arange(len(numbers))
    height = 0.8 / len(bars_of)
    names = [_shortened(results["classes"][c], 31) for c in numbers]
    axes.set_yticks(places + (0.8 - height) / 2, names)
    for label, c in zip(axes.get_yticklabels(), numbers, strict=True):
        label.set_fontweight("bold" if c in results["targets"] else "normal")
    for side, (counts, color) in bars_of.items():
        bars = axes.barh(places, [counts[c] for c in numbers], height, color=color, label=side)
        axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
        places = places + height
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)  # room for the numbers, which stand for a scale
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    title = "errors on the test images"
    if others := len(results["classes"]) - len(numbers):
        title += f"\n{others} others are not shown"
    axes.set_title(title, loc="left")
    if len(bars_of) > 1:
        figure.legend(ncols=2, frameon=False, loc="outside lower right")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_dial(
    dials: Mapping[str, Mapping[str, Any]], advised: str | None, results: Mapping[str, Any]
) -> Figure:
    """Validation errors on what is to be repaired against its price, or all over the scale.

    The price is errors elsewhere and, beside it, false calls. ``dials`` has ``dial`` of
    results.json by the name of its curve. The advised point of the curve ``advised``, if there is
    one, is marked. ``results`` are those of any of the repairs.
    """
    up, ylabel, prices, width = "errors", "errors on all classes", {"scales": "scale"}, _WIDTH
    if results["targets"]:
        name = _shortened(named(results["classes"], results["targets"]), 40)
        up, ylabel, width = "errors_of_target", f"errors on {name}", 9.0
        prices = {
            "errors_elsewhere": f"errors on {others_of(results['classes'])}",
            "false_calls_of_target": f"false calls of {name}",
        }
    can_tell_apart = len(dials) <= _MAX_LINES
    marked = dials[advised or next(iter(dials))]
    figure = Figure(figsize=(width, 4.5 + 0.1 * min(len(dials), _MAX_LINES)), layout="constrained")
    panels = figure.subplots(1, len(prices), sharey=True, squeeze=False)[0]
    for axes, (across, xlabel) in zip(panels, prices.items(), strict=True):
        axes.margins(0.08, 0.1)  # room for the numbers beside the points
        for label, dial in dials.items():
            line = {"label": _shortened(label, 50)} if can_tell_apart else {"color": _GRAY}
            axes.plot(dial[across], dial[up], marker="o", ms=4, **line)
        if len(dials) == 1:
            for scale, x, y in zip(marked["scales"], marked[across], marked[up], strict=True):
                axes.annotate(f"{scale:g}", (x, y), (4, 5), textcoords="offset points", fontsize=8)
        if advised is not None:
            place = marked["scales"].index(marked["advised"])
            label = f"advised: {_shortened(advised, 30)} at scale {marked['advised']:g}"
            x, y = marked[across][place], marked[up][place]
            axes.plot(x, y, "o", ms=11, color=_GREEN, zorder=1, label=label)
        place = marked["scales"].index(0)
        x, y = marked[across][place], marked[up][place]
        axes.plot(x, y, "s", ms=8, color="black", zorder=1, label="base")
        if across == "errors_elsewhere":
            label = "as many errors in all as the base"
            axes.axline((x, y), slope=-1, color=_GRAY, ls="--", lw=1, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(ylabel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, frameon=False, loc="outside lower center")
    title = f"scales from 0, the base, to {marked['scales'][-1]:g}"
    panels[0].set_title(f"{title}\n{marked['images']:,} validation images", loc="left")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_confusion(table: Columns, classes: Sequence[str]) -> Figure:
    """How many images of each class get each prediction, or how an adapter changes that."""
    title, sign = "images of each class by their prediction\ngreen: right, red: wrong", ""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (table["label"], table["before"]), 1)
    if "after" in table:
        title, sign = "what changed: images, after - before\ngreen: better, red: worse", "+"
        counts = -counts
        np.add.at(counts, (table["label"], table["after"]), 1)
    side = max(0.42 * len(counts), 3)
    figure = Figure(figsize=(side + 1.6, side + 1.2), layout="constrained")
    axes = figure.subplots()
    good = np.where(np.eye(len(counts), dtype=bool), counts, -counts)
    # On a linear scale with thousands of right predictions the few wrong ones would not be seen.
    limit = 2 * max(int(np.abs(counts).max()), 1)  # pale colours, on which numbers can be read
    colors = LinearSegmentedColormap.from_list("errors", [_RED, "white", _GREEN])
    axes.imshow(good, cmap=colors, norm=AsinhNorm(10, vmin=-limit, vmax=limit))
    for row, column in np.argwhere(counts).tolist():
        text = f"{counts[row, column]:{sign},}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7)
    places = range(len(counts))
    axes.set_yticks(places, [_shortened(name) for name in classes])
    axes.set_xticks(places, [_shortened(name, 6) for name in classes])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    axes.set_title(title, loc="left")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_gallery(kind: str, pictures: "Sequence[Picture]", count: int) -> Figure:
    """The first of ``count`` images of one kind in rows, each above two classes and its name."""
    columns = min(max(len(pictures), 4), _COLUMNS)  # the title needs its room
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(0.75 * columns, 0.6 + 1.2 * rows), layout="constrained")
    meaning = "label → prediction" if kind == "wrong" else "predictions: before → after"
    title = f"{kind}: {len(pictures):,} of {count:,} images\n{meaning}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for number, picture in enumerate(pictures, start=1):
        axes = figure.add_subplot(rows, columns, number, frame_on=False, xticks=[], yticks=[])
        axes.imshow(picture.pixels)
        first = picture.label if kind == "wrong" else picture.predictions[0][0]
        names = [_shortened(first, 9), _shortened(picture.predictions[-1][0], 9)]
        arrow = " → " if len("".join(names)) < 8 else " →\n"
        axes.set_xlabel(arrow.join(names), fontsize=8)
        # A file with its folder: a name may stand in several.
        name = "/".join(picture.name.split("/")[-2:])
        axes.set_title(_shortened(name, 19), fontsize=5.5, pad=2)
    return figure


@matplotlib.rc_context(_STYLE)
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
    texts = values[across]
    is_numeric = not any(numeric_sort_key(text)[0] for text in texts)  # else side by side
    places = {text: float(text) if is_numeric else i for i, text in enumerate(texts)}
    figure = Figure(figsize=(_WIDTH, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=metric)
    for label, line in lines.items():
        x = [places[swept[across]] for swept, _, _ in line]
        y = [value for _, value, _ in line]
        spread = [std or 0.0 for _, _, std in line]
        axes.errorbar(x, y, spread, fmt=style, label=label)
    if is_numeric and 0 < 8 * places[texts[0]] <= places[texts[-1]]:
        axes.set_xscale("log")
    if len(texts) <= 8 or not is_numeric:
        axes.set_xticks([*places.values()], texts)
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        figure.legend(ncols=2, frameon=False, loc="outside lower center")
    return figure


def _shortened(name: str, most: int = 17) -> str:
    """``name`` without its middle, where it is longer than ``most`` characters."""
    end = most // 2
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
