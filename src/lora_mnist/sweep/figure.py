"""The figure of a sweep: its metric over what was swept."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lora_mnist.sweep.records import natural

#: What was swept, the metric's mean over the seeds, and its standard deviation.
Point = tuple[dict[str, str], float, float | None]


def draw_sweep(path: Path, points: Sequence[Point], metric: str, mode: str) -> None:
    """Draw ``metric`` over the swept keys into a PNG file.

    A grid of two keys becomes a heat map, anything else a panel for each key. ``mode``, ``max`` or
    ``min``, says which end of the metric is better.
    """
    values = {}
    for key in points[0][0]:
        values[key] = sorted({swept[key] for swept, _, _ in points}, key=natural)
    values = {key: texts for key, texts in values.items() if len(texts) > 1} or values
    best = (max if mode == "max" else min)(points, key=lambda point: point[1])
    is_grid = len(values) == 2 and 2 * len(points) >= math.prod(map(len, values.values()))
    with rc_context({"text.parse_math": False}):  # text between two dollars is no formula
        figure = Figure(layout="constrained")
        if is_grid:
            _draw_heat_map(figure, points, values, metric, mode)
        else:
            _draw_panels(figure, points, values, metric, best)
        settings = ", ".join(f"{key}={best[0][key]}" for key in values)
        figure.suptitle(f"best {metric}: {best[1]:.4f} at {settings}", fontsize=11, wrap=True)
        figure.savefig(path, dpi=150, format="png")


def _draw_heat_map(
    figure: Figure, points: Sequence[Point], values: dict[str, list[str]], metric: str, mode: str
) -> None:
    up, across = sorted(values, key=lambda key: len(values[key]))  # the longer one goes across
    rows, columns = values[up], values[across]
    cells = [[math.nan] * len(columns) for _ in rows]
    figure.set_size_inches(2.4 + max(3, 0.9 * len(columns)), 3 + 0.5 * len(rows))
    axes = figure.add_subplot(xlabel=across, ylabel=up, facecolor="0.9")  # grey: no result
    for swept, value, _ in points:
        x, y = columns.index(swept[across]), rows.index(swept[up])
        cells[y][x] = value
        axes.text(
            x, y, f"{value:.4f}", ha="center", va="center", fontsize=9, backgroundcolor="#ffffff99"
        )
    colors = "viridis" if mode == "max" else "viridis_r"
    image = axes.imshow(cells, cmap=colors, aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, label=metric)


def _draw_panels(
    figure: Figure, points: Sequence[Point], values: dict[str, list[str]], metric: str, best: Point
) -> None:
    """Draw one panel for each key; with several, the other keys spread the points at a value."""
    figure.set_size_inches(max(6, 3.2 * len(values)), 4)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    panels[0].set_ylabel(metric)
    for axes, (key, texts) in zip(panels, values.items(), strict=True):
        is_numeric = not any(natural(text)[0] for text in texts)  # else side by side
        place = {text: float(text) if is_numeric else i for i, text in enumerate(texts)}
        if is_numeric and 0 < 8 * place[texts[0]] <= place[texts[-1]]:
            axes.set_xscale("log")
        if len(texts) <= 8 or not is_numeric:
            axes.set_xticks([*place.values()], texts)
            axes.minorticks_off()
        ordered = sorted(points, key=lambda point: place[point[0][key]])
        x = [place[swept[key]] for swept, _, _ in ordered]
        y = [value for _, value, _ in ordered]
        spread = [std or 0.0 for _, _, std in ordered]
        axes.errorbar(x, y, spread, fmt="o-" if len(values) == 1 else "o")
        axes.plot(place[best[0][key]], best[1], "o", ms=9, zorder=3)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
