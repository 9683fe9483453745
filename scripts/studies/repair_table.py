"""What the study shows: tables in a page, between markers, and a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import Results, errors

from lora_mnist.disk.files import atomic_write

#: By method: a dictionary of numbers for each run.
Rows = dict[str, list[dict[str, float]]]


def columns(results: Results, base: Results, target: Sequence[int]) -> dict[str, float]:
    """What a table shows of a run on test images; shares are percentages of the base's errors."""
    after, before = (errors(each["test"], target) for each in (results, base))
    elsewhere, base_elsewhere = (every - few for few, every in (after, before))
    return {
        **shares(after, before),
        "elsewhere": 100 * elsewhere / base_elsewhere,
        "base class": before[0],
        "base all": before[1],
        "repaired": results["test"].get("repaired", 0),
        "broken": results["test"].get("broken", 0),
        "trained weights": results["parameters"]["trainable"],
    }


def shares(after: tuple[int, int], before: tuple[int, int]) -> dict[str, float]:
    """Errors over the base's, in percent: on the class or classes, and all."""
    return {"class": 100 * after[0] / before[0], "all": 100 * after[1] / before[1]}


def markdown(rows: Rows, seconds: Mapping[str, float] | None = None) -> str:
    """The table of ``rows``: mean, standard deviation and worst case over the runs.

    Args:
        rows: by method; with more than shares in them, the first is the base.
        seconds: what each method takes, where that was measured.
    """
    heads = ["on the class: mean, worst", "of all: mean, worst"]
    counts = ["repaired", "broken", "trained weights"] if "base" in rows else []
    heads += [*counts, *(["runs"] if counts else []), *(["CPU seconds"] if seconds else [])]
    lines = [f"| method | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for method, runs in rows.items():
        cells = [method]
        for name in ("class", "all"):
            values = [run[name] for run in runs]
            cell = f"{statistics.mean(values):.1f}%"
            if len(set(values)) > 1:
                cell += f" ± {statistics.stdev(values):.1f}, {max(values):.0f}%"
            cells.append(cell)
        cells += [_mean(runs, name) for name in counts]
        if counts:
            cells.append(str(len(runs)))
        if seconds:
            cells.append(f"{seconds[method]:.1f}" if method in seconds else "")
        lines.append(f"| {' | '.join(cells)} |")
    if counts:
        few, many = (_mean(rows["base"], f"base {name}") for name in ("class", "all"))
        lines += ["", f"The base's errors, on average: {few} on the class, {many} in all."]
    return "\n".join(lines)


def _mean(runs: list[dict[str, float]], name: str) -> str:
    return f"{statistics.mean(run[name] for run in runs):,.0f}"


def fill(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of ``page``.

    Raises:
        ValueError: if the page has no such markers.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page}: expected the lines {start.strip()} and {end.strip()}")
    with atomic_write(page) as path:
        path.write_text(f"{before}{start}{text}\n{end}{after}")


def draw(rows: Rows, path: Path) -> None:
    """Draw errors on the class against errors elsewhere, with the Pareto front of the methods."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    points = []
    for number, (method, runs) in enumerate(rows.items()):
        x, y = (statistics.mean(run[name] for run in runs) for name in ("elsewhere", "class"))
        points.append((x, y))
        color = plt.get_cmap("tab20")(number - 1) if method != "base" else "black"
        axes.scatter(x, y, marker="o^sDv"[number % 5], color=color, label=method, zorder=2)
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:  # better on the class than all that are better elsewhere
            front.append((x, y))
    axes.plot(*zip(*front, strict=True), color="0.6", lw=1, zorder=1, label="Pareto front")
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    ticks = [tick for tick in (40, 50, 60, 80, 100, 150, 200, 400, 800) if least <= tick <= most]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("errors elsewhere, % of the base's (test images, log scale)")
    axes.set_ylabel("errors on the class, % of the base's")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
