"""The picture of a sweep: its metric over what was swept. The only module here with matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lora_mnist.sweep.records import natural

_BLUE, _ORANGE = "#1f77b4", "#ff7f0e"


class Point(NamedTuple):
    """One job, or the jobs that differ in their seed alone.

    Attributes:
        swept: what was swept, key to value.
        value: the metric, or its mean over the seeds; ``None`` where there is none.
        std: the metric's standard deviation over the seeds; ``None`` of a single job.
    """

    swept: dict[str, str]
    value: float | None
    std: float | None = None


def draw_sweep(path: Path, points: Sequence[Point], metric: str, mode: str) -> None:
    """Draw ``metric`` over what was swept, into a PNG file.

    One key gives a line, a grid of two keys a heat map, anything else a scatter for each key.

    Args:
        path: file to write.
        points: at least one of them must have a value.
        metric: the metric's name.
        mode: "max" or "min": which end of the metric is best.
    """
    keys = list(points[0].swept)
    keys = [key for key in keys if len({point.swept[key] for point in points}) > 1] or keys[:1]
    values = {key: sorted({point.swept[key] for point in points}, key=natural) for key in keys}
    drawn = [point for point in points if point.value is not None]
    best = sorted(drawn, key=lambda point: point.value or 0.0)[-1 if mode == "max" else 0]
    if any(point.std is not None for point in drawn):
        metric = f"mean {metric} over seeds"
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    if len(keys) == 2 and 2 * len(drawn) >= math.prod(len(each) for each in values.values()):
        _draw_heat_map(figure, drawn, values, best, metric, mode)
    else:
        _draw_panels(figure, drawn, values, best, metric)
    settings = []
    for key in keys:
        text = best.swept[key]
        settings.append(f"{key}={float(text):.4g}" if _is_number(text) else f"{key}={text}")
    title = f"best {metric}: {best.value:.4f} at {', '.join(settings)}"
    figure.suptitle(_plain(title), fontsize=11)
    figure.savefig(path, dpi=150, format="png")


def _plain(text: str) -> str:
    """``text`` for matplotlib, which takes what is between two dollars for a formula."""
    return text.replace("$", r"\$")


def _is_number(text: str) -> bool:
    return not natural(text)[0]


def _draw_heat_map(
    figure: Figure,
    drawn: Sequence[Point],
    values: dict[str, list[str]],
    best: Point,
    metric: str,
    mode: str,
) -> None:
    # The key with more values goes across.
    up, across = sorted(values, key=lambda key: len(values[key]))
    columns, lines = values[across], values[up]
    cells = [[math.nan] * len(columns) for _ in lines]
    for point in drawn:
        assert point.value is not None
        cells[lines.index(point.swept[up])][columns.index(point.swept[across])] = point.value
    width, height = 2.4 + 0.9 * len(columns), 1.6 + 0.6 * len(lines)
    figure.set_size_inches(min(16, max(5, width)), min(12, max(3.4, height)))
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # seen where a job has no result
    colors = "viridis" if mode == "max" else "viridis_r"
    image = axes.imshow(cells, cmap=colors, aspect="auto", origin="lower")
    if len(columns) * len(lines) <= 150:
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                text = "no result" if math.isnan(value) else f"{value:.4f}"
                is_dark = not math.isnan(value) and sum(image.to_rgba(value)[:3]) < 1.5  # type: ignore[arg-type]
                color = "white" if is_dark else "black"
                axes.text(x, y, text, ha="center", va="center", color=color, fontsize=9)
    corner = columns.index(best.swept[across]) - 0.5, lines.index(best.swept[up]) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=_ORANGE, lw=3, clip_on=False, zorder=3))
    for set_ticks, names in ((axes.set_xticks, columns), (axes.set_yticks, lines)):
        step = 1 + len(names) // 25  # so that labels do not touch
        set_ticks(range(0, len(names), step), [_plain(name) for name in names[::step]])
    axes.set_xlabel(_plain(across))
    axes.set_ylabel(_plain(up))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label=_plain(metric))


def _draw_panels(
    figure: Figure, drawn: Sequence[Point], values: dict[str, list[str]], best: Point, metric: str
) -> None:
    """Draw one panel for each key; with several, the spread at a value is what the others do."""
    is_line = len(values) == 1
    figure.set_size_inches(6 if is_line else max(5, 3.2 * len(values)), 4)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, (key, texts) in zip(panels, values.items(), strict=True):
        place = _place(axes, texts)
        points = []
        for text in texts:
            points += [point for point in drawn if point.swept[key] == text]
        x = [place[point.swept[key]] for point in points]
        y = [point.value for point in points]
        spread = [point.std or 0.0 for point in points]
        style = "o-" if is_line else "o"
        axes.errorbar(x, y, spread if any(spread) else None, fmt=style, color=_BLUE, capsize=3)
        axes.plot(place[best.swept[key]], best.value, "o", color=_ORANGE, ms=9, zorder=3)
        axes.set_xlabel(_plain(key))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(_plain(metric))


def _place(axes: Axes, values: list[str]) -> dict[str, float]:
    """Positions of values: numbers to scale, logarithmic if they span much; words side by side."""
    if not all(_is_number(value) for value in values):
        axes.set_xticks(range(len(values)), [_plain(value) for value in values])
        return {value: float(i) for i, value in enumerate(values)}
    place = {value: float(value) for value in values}
    numbers = list(place.values())
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 8:
        axes.set_xscale("log")
    if len(numbers) <= 8:
        axes.set_xticks(numbers, values)
        axes.minorticks_off()
    return place
