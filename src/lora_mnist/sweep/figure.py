"""The picture of a sweep: its metric over what was swept. The only module here with matplotlib."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from lora_mnist.sweep.records import natural

Groups = dict[tuple[str, ...], float]


@dataclass
class _Plot:
    """What a figure shows.

    Attributes:
        name: the metric.
        mode: "max" or "min".
        keys: what was swept.
        values: the values of each key, in order.
        groups: the mean metric of each combination of values.
        spreads: the metric's standard deviation, where a combination has several seeds.
        best: the best combination.
    """

    name: str
    mode: str
    keys: list[str]
    values: list[list[str]]
    groups: Groups
    spreads: Groups
    best: tuple[str, ...]


def draw_sweep(
    path: Path, points: Sequence[tuple[dict[str, str], float | None]], metric: str, mode: str
) -> None:
    """Draw ``metric`` over what was swept, into a PNG file.

    One key gives a line, a grid of two keys a heat map, anything else a scatter for each key. Jobs
    that differ only in their seed are averaged; a line shows their standard deviation.

    Args:
        path: file to write.
        points: for each job, what was swept, key to value, and its metric, if it has one. At least
            one job must have it.
        metric: the metric's name.
        mode: "max" or "min": which end of the metric is best.

    Raises:
        OSError: if the file cannot be written.
    """
    points = [({_text(k): _text(v) for k, v in swept.items()}, value) for swept, value in points]
    metric = _text(metric)
    keys = list(points[0][0])
    keys = [key for key in keys if len({swept[key] for swept, _ in points}) > 1] or keys[:1]
    averaged = "seed" in keys and len(keys) > 1
    if averaged:
        keys.remove("seed")
    found: dict[tuple[str, ...], list[float]] = {}
    for swept, value in points:
        if value is not None:
            found.setdefault(tuple(swept[key] for key in keys), []).append(value)
    groups = {group: mean(values) for group, values in found.items()}
    plot = _Plot(
        name=f"mean {metric} over seeds" if averaged else metric,
        mode=mode,
        keys=keys,
        values=[sorted({swept[key] for swept, _ in points}, key=natural) for key in keys],
        groups=groups,
        spreads={group: stdev(values) for group, values in found.items() if len(values) > 1},
        best=(max if mode == "max" else min)(groups, key=lambda group: groups[group]),
    )
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    if len(keys) == 1:
        _draw_line(figure, plot)
    elif len(keys) == 2 and 2 * len(groups) >= math.prod(map(len, plot.values)):
        _draw_heat_map(figure, plot)
    else:
        _draw_slices(figure, plot)
    setting = ", ".join(f"{k}={_short(v)}" for k, v in zip(keys, plot.best, strict=True))
    figure.suptitle(f"best {plot.name}: {groups[plot.best]:.4f} at {setting}", fontsize=11)
    figure.savefig(path, dpi=150)


def _text(name: str) -> str:
    """``name`` for matplotlib, which takes what is between two dollars for a formula."""
    return name.replace("$", r"\$")


def _short(value: str) -> str:
    """A number to four digits; a sampled one comes with seventeen."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _draw_line(figure: Figure, plot: _Plot) -> None:
    figure.set_size_inches(6, 4)
    axes = figure.add_subplot()
    (key,), (values,) = plot.keys, plot.values
    place = _place(axes, values)
    groups = {value: plot.groups[(value,)] for value in values if (value,) in plot.groups}
    x = [place[value] for value in groups]
    if plot.spreads:
        spread = [plot.spreads.get((value,), 0.0) for value in groups]
        axes.errorbar(x, list(groups.values()), spread, color=_BLUE, capsize=3, marker="o")
    else:
        axes.plot(x, list(groups.values()), color=_BLUE, marker="o")
    axes.plot(place[plot.best[0]], plot.groups[plot.best], "o", color=_ORANGE, ms=9, zorder=3)
    _finish(axes, key, plot.name)


def _draw_heat_map(figure: Figure, plot: _Plot) -> None:
    # The key with more values goes across.
    across, up = (0, 1) if len(plot.values[0]) >= len(plot.values[1]) else (1, 0)
    columns, lines = plot.values[across], plot.values[up]
    cells = [[math.nan] * len(columns) for _ in lines]
    for group, value in plot.groups.items():
        cells[lines.index(group[up])][columns.index(group[across])] = value
    figure.set_size_inches(
        min(16, max(5, 2.4 + 0.9 * len(columns))), min(12, max(3.4, 1.6 + 0.6 * len(lines)))
    )
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # seen where a job has no result
    colors = "viridis" if plot.mode == "max" else "viridis_r"
    image = axes.imshow(cells, cmap=colors, aspect="auto", origin="lower")
    if len(columns) * len(lines) <= 150:
        for row, column in product(range(len(lines)), range(len(columns))):
            _write_cell(axes, row, column, cells[row][column], image)
    corner = columns.index(plot.best[across]) - 0.5, lines.index(plot.best[up]) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=_ORANGE, lw=3, clip_on=False, zorder=3))
    for set_ticks, names in ((axes.set_xticks, columns), (axes.set_yticks, lines)):
        step = 1 + len(names) // 25  # so that labels do not touch
        set_ticks(range(0, len(names), step), names[::step])
    axes.set_xlabel(plot.keys[across])
    axes.set_ylabel(plot.keys[up])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label=plot.name)


def _write_cell(axes: Axes, row: int, column: int, value: float, image: AxesImage) -> None:
    if math.isnan(value):
        text, color = "no result", "0.4"
    else:
        red, green, blue, _ = image.to_rgba(value)  # type: ignore[arg-type]
        text = f"{value:.4f}"
        color = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)


def _draw_slices(figure: Figure, plot: _Plot) -> None:
    """Draw one panel for each key; the spread at a value is what the other keys do."""
    figure.set_size_inches(max(5, 3.2 * len(plot.keys)), 3.6)
    panels: Any = figure.subplots(1, len(plot.keys), sharey=True, squeeze=False)[0]
    for i, (axes, key) in enumerate(zip(panels, plot.keys, strict=True)):
        place = _place(axes, plot.values[i])
        x = [place[group[i]] for group in plot.groups]
        axes.plot(x, list(plot.groups.values()), "o", color=_BLUE, alpha=0.6)
        axes.plot(place[plot.best[i]], plot.groups[plot.best], "o", color=_ORANGE, ms=9)
        _finish(axes, key, plot.name if i == 0 else None)


_BLUE, _ORANGE = "#1f77b4", "#ff7f0e"


def _place(axes: Axes, values: list[str]) -> dict[str, float]:
    """Positions of values: numbers to scale, logarithmic if they span much; words side by side."""
    try:
        place = {value: float(value) for value in values}
    except ValueError:
        axes.set_xticks(range(len(values)), values)
        return {value: float(i) for i, value in enumerate(values)}
    numbers = list(place.values())
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 8:
        axes.set_xscale("log")
    if len(numbers) <= 8:
        axes.set_xticks(numbers, values)
        axes.minorticks_off()
    return place


def _finish(axes: Axes, key: str, name: str | None) -> None:
    axes.set_xlabel(key)
    if name:
        axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
