"""Figures of a run, from its results.json and its saved predictions, and of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Predictions, kinds_of
from lora_mnist.show.changes import named, others_of, outcome_before, start_of
from lora_mnist.show.class_table import listed_classes
from lora_mnist.sweep.jobs import numeric_sort_key

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
#: With more lines no reader could tell them apart: then there are only points.
_MAX_LINES = 10


def draw_run(
    folder: Path, results: Mapping[str, Any], predictions: Predictions | None
) -> dict[str, Path]:
    """Draw all figures of the run in ``folder`` in place of earlier ones; return their files."""
    classes = results["classes"]
    figures = {}
    if listed_classes(results):
        figures["errors"] = draw_errors(results)
    if results.get("dial"):
        figures["dial"] = draw_dial({"adapter": results["dial"]}, "adapter", results)
    if predictions is not None:
        for kind, places in kinds_of(predictions).items():
            if len(places):
                figures[kind] = draw_gallery(kind, predictions, classes)
        if len(classes) <= _MAX_IN_MATRIX:
            figures["confusion"] = draw_confusion(predictions, classes)
    for path in (folder / FIGURES).glob("*.png"):
        path.unlink()
    paths = {name: folder / FIGURES / f"{name}.png" for name in figures}
    for name, path in paths.items():
        save_figure(figures[name], path)
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


@matplotlib.rc_context(_STYLE)
def draw_errors(results: Mapping[str, Any]) -> Figure:
    """Bars of each class's errors before and after; of many classes those that changed most."""
    first = "before" if "test_before" in results else "base"
    errors = {first: outcome_before(results)["errors_per_class"]}
    if "test_base" in results:
        errors["adapted"] = results["test"]["errors_per_class"]
    numbers = listed_classes(results)
    figure = Figure(figsize=(_WIDTH, 1 + 0.36 * len(numbers)), layout="constrained")
    axes = figure.subplots()
    places: NDArray[Any] = np.arange(len(numbers))
    height = 0.8 / len(errors)
    names = [_shortened(results["classes"][c], 31) for c in numbers]
    axes.set_yticks(places + (0.8 - height) / 2, names)
    for label, c in zip(axes.get_yticklabels(), numbers, strict=True):
        label.set_fontweight("bold" if c in results["targets"] else "normal")
    for side, counts in errors.items():
        color = _BLUE if side == "adapted" else _GRAY
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
    if len(errors) > 1:
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
    classes, targets = results["classes"], results["targets"]
    start = start_of(results)
    up, ylabel, prices = "errors", "errors on all classes", {"scales": "scale"}
    if targets:
        name = named(classes, targets)
        up, ylabel = "errors_of_target", f"errors on {_shortened(name, 40)}"
        prices = {"errors_elsewhere": f"errors on {others_of(classes)}"}
        prices["false_calls_of_target"] = f"false calls of {_shortened(name, 40)}"
    size = len(prices) * 4.5 if targets else _WIDTH, 4.5 + 0.1 * min(len(dials), _MAX_LINES)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(prices), sharey=True, squeeze=False)[0]
    for axes, (across, xlabel) in zip(panels, prices.items(), strict=True):
        axes.margins(0.08, 0.1)  # room for the numbers beside the points
        for label, dial in dials.items():
            color = _GRAY if len(dials) > _MAX_LINES else None
            axes.plot(dial[across], dial[up], marker="o", ms=4, color=color, label=label)
            for scale, x, y in zip(dial["scales"], dial[across], dial[up], strict=True):
                if scale == 1 or len(dials) == 1:
                    offset: Any = {"xytext": (4, 5), "textcoords": "offset points"}
                    axes.annotate(f"{scale:g}", (x, y), fontsize=8, **offset)
        dial = dials[advised or next(iter(dials))]
        base = dial[across][dial["scales"].index(0)], dial[up][dial["scales"].index(0)]
        marker: Any = {"marker": "o", "ms": 11, "ls": "", "zorder": 1}
        if advised is not None:
            place = dial["scales"].index(dial["advised"])
            text = f"advised: {advised} at scale {dial['advised']:g}"
            axes.plot(dial[across][place], dial[up][place], color=_GREEN, label=text, **marker)
        axes.plot(*base, color="black", label=start, **{**marker, "marker": "s", "ms": 8})
        if across == "errors_elsewhere":
            limits = axes.get_xlim(), axes.get_ylim()
            label = "as many errors in all as the base"
            axes.plot([sum(base), 0], [0, sum(base)], color=_GRAY, ls="--", lw=1, label=label)
            axes.set(xlim=limits[0], ylim=limits[1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(ylabel)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(dials) > _MAX_LINES:  # no reader could tell them apart
        handles, labels = handles[len(dials) :], labels[len(dials) :]
    most = 110 if targets else 70  # characters of a line
    columns = 2 if max(map(len, labels)) < most // 2 else 1
    texts = [_shortened(label, most) for label in labels]
    figure.legend(handles, texts, ncols=columns, frameon=False, loc="outside lower center")
    title = f"scales from 0, the {start}, to {dial['scales'][-1]:g}"
    panels[0].set_title(f"{title}\n{dial['images']:,} validation images", loc="left")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_confusion(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """How many images of each class get each prediction, or how an adapter changes that."""
    title, sign = "images of each class by their prediction\ngreen: right, red: wrong", ""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (predictions["label"], predictions["base"]), 1)
    if "adapted" in predictions:
        title, sign = "what changed: images, after - before\ngreen: better, red: worse", "+"
        counts = -counts
        np.add.at(counts, (predictions["label"], predictions["adapted"]), 1)
    # On one scale with thousands of right predictions the few wrong ones would not be seen.
    right = np.eye(len(counts), dtype=bool)
    size = np.abs(counts)
    most = np.where(right, size[right].max(initial=1), size[~right].max(initial=1))
    good = np.where(right, counts, -counts)
    side = max(0.42 * len(counts), 3)
    figure = Figure(figsize=(side + 1.6, side + 1.2), layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("errors", [_RED, "white", _GREEN])
    axes.imshow(np.sign(good) * np.sqrt(np.abs(good) / most), cmap=colors, vmin=-1.4, vmax=1.4)
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


def as_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """An image, (channels, height, width), as (height, width, 3)."""
    pixels = np.moveaxis(pixels, 0, -1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


@matplotlib.rc_context(_STYLE)
def draw_gallery(kind: str, predictions: Predictions, classes: Sequence[str]) -> Figure:
    """The first images of one kind in rows, each above two classes and its name."""
    images, places = predictions[f"{kind}.images"], kinds_of(predictions)[kind]
    after = "adapted" if "adapted" in predictions else "base"
    sides, meaning = ("base", after), "predictions: before → after"
    if kind == "wrong":
        sides, meaning = ("label", after), "label → prediction"
    columns = min(max(len(images), 4), _COLUMNS)  # the title needs its room
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(0.75 * columns, 0.6 + 1.2 * rows), layout="constrained")
    title = f"{kind}: {len(images):,} of {len(places):,} images\n{meaning}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for number, pixels in enumerate(images):
        axes = figure.add_subplot(rows, columns, number + 1, frame_on=False, xticks=[], yticks=[])
        axes.imshow(as_rgb(pixels))
        names = [_shortened(classes[predictions[side][places[number]]], 9) for side in sides]
        arrow = " → " if len("".join(names)) < 8 else " →\n"
        axes.set_xlabel(arrow.join(names), fontsize=8)
        # A file with its folder: a name may stand in several.
        name = "/".join(str(predictions["name"][places[number]]).split("/")[-2:])
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
