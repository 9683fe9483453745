"""The figure of a sweep: its metric over what was swept."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lora_mnist.sweep.jobs import natural

#: What was swept, the metric's mean over the seeds, and its standard deviation.
Point = tuple[dict[str, str], float, float | None]

#: With more lines no reader could tell them apart: then there are only points.
_MOST_LINES = 10


def draw_sweep(path: Path, points: Sequence[Point], metric: str) -> None:
    """Draw ``metric`` over the key with most values into a PNG file, a line for all other keys."""
    values = {}
    for key in points[0][0]:
        values[key] = sorted({swept[key] for swept, _, _ in points}, key=natural)
    across = max(values, key=lambda key: len(values[key]))
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: natural(point[0][across])):
        others = [f"{key}={value}" for key, value in point[0].items() if key != across]
        lines.setdefault(", ".join(others), []).append(point)
    style = "o-"
    if len(lines) > _MOST_LINES:
        lines, style = {"": list(points)}, "o"
    texts = values[across]
    is_numeric = not any(natural(text)[0] for text in texts)  # else side by side
    places = {text: float(text) if is_numeric else i for i, text in enumerate(texts)}
    with rc_context({"text.parse_math": False}):  # text between two dollars is no formula
        figure = Figure(figsize=(6, 4), layout="constrained")
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
        figure.savefig(path, dpi=150, format="png")
