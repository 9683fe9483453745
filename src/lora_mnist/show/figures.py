"""Figures of a run, from its results and predictions, and of a sweep."""

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

from lora_mnist.files import atomic_write
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.summary import Summary, aggregate, numeric_sort_key

log = logging.getLogger(__name__)

#: Above this, points replace lines; above the second, values get a numeric axis.
_MAX_LINES = 10
_COLORS = {"better": "#1c7c46", "worse": "#b8324a", "unclear": "gray"}

#: A dollar in a name begins no formula.
_plain_text = matplotlib.rc_context({"text.parse_math": False})


def replace_undrawable_names(names: Sequence[str]) -> list[str]:
    """Return the names; one with a character that Matplotlib's fonts lack becomes its number."""
    families = matplotlib.rcParams["font.family"]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    drawn = []
    for place, name in enumerate(names):
        has_all = all(any(font.get_char_index(ord(each)) for font in fonts) for each in name)
        drawn.append(name if has_all else f"#{place}")
    if drawn != [*names]:
        log.warning("figures have numbers: font.family of Matplotlib lacks letters of some names")
    return drawn


def save_figure(figure: Figure, path: Path) -> str:
    """Write a PNG file, whole or not at all; return it as the address of an image in a page."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return encode_png(path.read_bytes())


def encode_png(png: bytes) -> str:
    """Return the content of a PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@_plain_text
def draw_classes(results: RunResults) -> Figure:
    """Draw errors on each class: an arrow from before to after, or a point for a base alone."""
    rows = [row for row in results.build_rows() if len(row.classes) == 1]
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="errors on test images")
    if results.is_repair:
        marks = ", bold: to be repaired" if results.targets else ""
        axes.set_title(f"before → after; gray: may be chance{marks}", fontsize=10)
    axes.set_yticks(range(len(rows)), [shorten(row.name) for row in rows])
    for place, (row, name) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
        before, after, color = row.change.before, row.change.after, _COLORS[row.change.judgement]
        weight, width = ("bold", 3.0) if row.is_target else ("normal", 1.5)
        name.set_fontweight(weight)
        axes.plot(before, place, "o", color=color, mfc="white" if results.is_repair else color)
        axes.plot(after, place, "|", color=color)
        if before != after:
            arrow = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 3, "shrinkB": 0}
            axes.annotate("", (after, place), (before, place), arrowprops=arrow)
        text = f"{before:,} → {after:,}" if results.is_repair else f"{after:,}"
        style: Any = {"textcoords": "offset points", "va": "center", "weight": weight}
        axes.annotate(text, (max(before, after), place), (9, 0), fontsize=9, **style)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@_plain_text
def draw_scale_curve(results: RunResults) -> Figure:
    """Draw validation errors over the scale: of the target, and the cost elsewhere."""
    curve, rows, curves = results.scale_curve, results.scale_curve["rows"], results.name_curves()
    scales = [row["scale"] for row in rows]
    figure = Figure(figsize=(7, 1 + 2 * len(curves)), layout="constrained")
    at_each = ", each with its best offset" if results.has_offset else ""
    title = f"the adapter at several scales{at_each}; {curve['images']:,} validation images"
    figure.suptitle(title)
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, key) in zip(panels, curves.items(), strict=True):
        counts, of_base = [row[key] for row in rows], curve["base"][key]
        axes.plot(scales, counts, "o-")
        axes.axhline(of_base, color="gray", lw=1, ls=":", label="base")
        axes.axvline(results.advised.scale, color="gray", ls="--", label="advised")
        axes.set_title(shorten(name, 70), fontsize=10)
        axes.set_ylim(0, 1.1 * max(*counts, of_base, 1))
        axes.grid(alpha=0.3)
    panels[0].legend()
    panels[-1].set_xlabel("scale: 1 is the adapter as trained, 0 without it")
    return figure


@_plain_text
def draw_confusion(matrices: Sequence[NDArray[np.int64]], classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix of a base, or the difference of those before and after a repair."""
    title, sign = "images of each class by their prediction\ngreen: right, pink: wrong", ""
    counts = matrices[-1]
    if len(matrices) == 2:
        title, sign = "what changed: images, after - before\ngreen: better, pink: worse", "+"
        counts = counts - matrices[0]
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="prediction", ylabel="label")
    good = np.where(np.eye(len(counts), dtype=bool), counts, -counts)
    # On a linear scale with thousands of right predictions the few wrong ones would not be seen.
    limit = 2 * max(int(np.abs(counts).max()), 1)  # pale colors, on which numbers can be read
    axes.imshow(good, "PiYG", norm=AsinhNorm(10, vmin=-limit, vmax=limit))
    for row, column in np.argwhere(counts).tolist():
        text = f"{counts[row, column]:{sign},}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(counts)), [shorten(name) for name in classes])
    axes.set_xticks(range(len(counts)), [shorten(name, 6) for name in classes])
    return figure


def save_sweep_figure(summary: Summary) -> None:
    """Write ``summary.png`` of a sweep."""
    points = []
    for row in summary.rows:
        value = aggregate(row, summary.metric)
        if value is not None:
            swept = {key: row[0].values[key] for key in summary.keys}
            points.append((swept, value, aggregate(row, summary.metric, stdev)))
    if points and summary.keys:
        metric = f"mean {summary.metric} over seeds" if summary.has_seeds else summary.metric
        save_figure(draw_sweep(points, metric), summary.folder / "summary.png")


@_plain_text
def draw_sweep(points: Sequence[tuple[dict[str, str], float, float | None]], metric: str) -> Figure:
    """Draw ``metric`` over the key with most values, a line for each combination of others."""
    # A point: the swept values by key, the metric's mean over seeds, and its standard deviation.
    values = {key: {swept[key] for swept, _, _ in points} for key in points[0][0]}
    across = max(values, key=lambda key: len(values[key]))
    texts = sorted(values[across], key=numeric_sort_key)
    lines: dict[str, list[Any]] = {}
    for point in sorted(points, key=lambda point: numeric_sort_key(point[0][across])):
        others = [f"{key}={value}" for key, value in point[0].items() if key != across]
        lines.setdefault(", ".join(others), []).append(point)
    style = "o-"
    if len(lines) > _MAX_LINES:
        lines, style = {"": list(points)}, "o"
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=metric)
    is_axis = len(texts) > _MAX_LINES and not any(numeric_sort_key(text)[0] for text in texts)
    if not is_axis:  # few values, or words, stand side by side
        axes.set_xticks(range(len(texts)), texts)
    for label, line in lines.items():
        x = []
        for swept, _, _ in line:
            text = swept[across]
            x.append(float(text) if is_axis else texts.index(text))
        y = [value for _, value, _ in line]
        axes.errorbar(x, y, [std or 0.0 for _, _, std in line], fmt=style, label=label)
    if len(lines) > 1:
        figure.legend(ncols=2, loc="outside lower center")
    return figure


def shorten(name: str, most: int = 17) -> str:
    """Return ``name`` without its middle if it has more than ``most`` characters."""
    end = most // 2
    return name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}"
