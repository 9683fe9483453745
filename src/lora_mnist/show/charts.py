"""Charts of a run: errors of each class, who is taken for whom, how large the update is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_mnist.show.canvas import (
    BLUE,
    GRAY,
    GREEN,
    RED,
    WIDTH,
    add_title,
    cut,
    figure_of,
    margin,
    new_axes,
    rgb,
)
from lora_mnist.show.spectrum import Update
from lora_mnist.show.verdict import targets_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 40
_MOST_NUMBERS = 12


def draw_errors(results: Mapping[str, Any], classes: Sequence[str]) -> "Figure":
    """Bars of each class's errors, before and after."""
    test, base = results["test"], results.get("test_base")
    after = test["errors_per_class"]
    before = base["errors_per_class"] if base else after
    worst = sorted(range(len(after)), key=lambda c: -max(before[c], after[c]))[:_MOST_BARS]
    shown = sorted(worst)
    names = [cut(classes[c]) for c in shown]
    axes = new_axes(0.9 + 0.34 * len(shown), margin(names), top=0.55, bottom=0.15)
    place = np.arange(len(shown))
    sides = (
        [("base", before, GRAY, -0.2), ("adapted", after, BLUE, 0.2)]
        if base
        else [("base", before, GRAY, 0.0)]
    )
    for label, counts, color, shift in sides:
        values = [counts[c] for c in shown]
        bars = axes.barh(place + shift, values, 0.38 if base else 0.7, color=color, label=label)
        axes.bar_label(bars, [f"{v:,}" for v in values], padding=2, fontsize=8)
    axes.set_yticks(place, names)
    for text, c in zip(axes.get_yticklabels(), shown, strict=True):
        if c in targets_of(results):
            text.set_fontweight("bold")
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    add_title(axes, "errors on the test images", "")
    if base:
        axes.legend(
            ncols=2,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.985),
            borderaxespad=0.2,
        )
    return figure_of(axes)


def draw_confusion(
    counts: Any, title: str, classes: Sequence[str], signed: bool = False
) -> "Figure":
    """A matrix of images by class and answer; what is right is green, what is wrong red."""
    n = len(counts)
    right = np.eye(n, dtype=bool)
    # Of thousands of right answers the few wrong ones would not be seen on one scale.
    good = np.where(right, counts > 0, counts < 0)
    size = np.abs(counts) / np.maximum(
        1,
        np.where(
            right, np.abs(counts[right]).max(initial=1), np.abs(counts[~right]).max(initial=1)
        ),
    )
    if not signed:
        size = np.where(right, 0.25 * size, size)
    cells = np.zeros((n, n, 4))
    cells[..., :3] = np.where(good[..., None], rgb(GREEN), rgb(RED))
    cells[..., 3] = np.where(counts == 0, 0, 0.12 + 0.8 * np.sqrt(size))
    names = [cut(name) for name in classes]
    side = WIDTH - margin(names) - 0.15
    axes = new_axes(side + 1.2, margin(names), top=0.75, bottom=0.45)
    axes.imshow(cells, interpolation="none", aspect="auto")
    if n <= _MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            value = int(counts[row, column])
            text = f"{value:+,}" if signed else f"{value:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
    step = 1 + n // 25
    short = [name.partition(" - ")[0][:6] for name in names]
    axes.set_yticks(range(0, n, step), names[::step])
    axes.set_xticks(range(0, n, step), short[::step])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.text(0.5, -0.1, "answer", transform=axes.transAxes, ha="center")
    add_title(axes, title, "green: better, red: worse" if signed else "green: right, red: wrong")
    return figure_of(axes)


def draw_singular_values(updates: Mapping[str, Update]) -> "Figure":
    """Singular values of what the adapter adds to each layer: how much of its rank it uses."""
    from matplotlib.ticker import MaxNLocator

    found = {name: of.singular_values().numpy() for name, of in updates.items()}
    if max(map(len, found.values())) == 1:
        return _norms({name: float(values[0]) for name, values in found.items()})
    axes = new_axes(3.2, 0.65, top=0.6, bottom=0.4)
    markers = "osD^vP*X"
    for i, (name, values) in enumerate(list(found.items())[: len(markers)]):
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, marker=markers[i], ms=4, lw=1, label=cut(name))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    meaning = "the largest first; those near 0 are rank that the adapter does not use"
    add_title(axes, "singular values of what it adds to each layer", meaning)
    return figure_of(axes)


def _norms(norms: Mapping[str, float]) -> "Figure":
    """With rank 1 a layer has one singular value: the size of what is added to it."""
    names = [cut(name) for name in norms][:_MOST_BARS]
    axes = new_axes(0.75 + 0.3 * len(names), margin(names), top=0.6, bottom=0.1)
    bars = axes.barh(np.arange(len(names)), list(norms.values())[:_MOST_BARS], 0.6, color=BLUE)
    axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    add_title(axes, "size of what it adds to each layer", "the one singular value of rank 1")
    return figure_of(axes)
