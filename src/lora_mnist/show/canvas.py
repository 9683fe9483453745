"""What all figures share: size, colours, titles.

What text and lines are drawn in is :data:`INK` alone, so that a page can give them its own colour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b2733"
GRAY, BLUE, GREEN, RED = "#9aa3ad", "#2f7fc1", "#2a9d5c", "#d1495b"

WIDTH = 4.6  # inches; at 10 points readable on a telephone too

#: matplotlib's settings while a figure is drawn.
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "lora_mnist",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def new_axes(height: float, left: float, top: float = 0.3, bottom: float = 0.5) -> "Axes":
    """Axes in a figure of their own; margins in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    sides = (
        left / WIDTH,
        bottom / height,
        1 - (left + 0.15) / WIDTH,
        1 - (top + bottom) / height,
    )
    return figure.add_axes(sides)


def add_title(axes: "Axes", title: str, more: str) -> None:
    """A title, and a line below it; matplotlib's own would look for its place, which takes time."""
    figure = figure_of(axes)
    height = float(figure.get_figheight())
    figure.text(0.02, 1 - 0.08 / height, title, fontsize=11, va="top")
    figure.text(0.02, 1 - 0.3 / height, more, fontsize=9, va="top")


def margin(names: Sequence[str]) -> float:
    """Room for the longest name, in inches."""
    return min(2.2, 0.25 + 0.085 * max(map(len, names), default=1))


def cut(name: str) -> str:
    """A name that fits the margin, and is no formula to matplotlib."""
    return (name if len(name) <= 22 else f"{name[:21]}…").replace("$", r"\$")


def figure_of(axes: "Axes") -> "Figure":
    """The figure that ``axes`` fill."""
    figure: Any = axes.figure
    return figure  # type: ignore[no-any-return]


def rgb(color: str) -> list[float]:
    """Red, green and blue of ``#rrggbb``, each from 0 to 1."""
    return [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
