"""What the study shows: a table of the methods, and a picture of both kinds of errors."""

import statistics
from pathlib import Path

from jobs import errors

from lora_mnist.files import atomic_write
from lora_mnist.sweep.records import Row

#: By method, then by column: a value a job.
Table = dict[str, dict[str, list[float]]]

#: Columns that a share of the base's follows in brackets.
_SHARES = {"errors on the class": "share on the class", "all errors": "share"}


def columns(rows: list[Row], split: str) -> dict[str, list[float]]:
    """What the table shows of some jobs on the images of ``split``, by column, a value a job."""
    found: dict[str, list[float]] = {}
    for row in rows:
        of_class, every = errors(row, split)
        base_of_class, base_every = errors(row, f"{split.removesuffix('_base')}_base")
        shown = {
            "errors on the class": of_class,
            "errors elsewhere": every - of_class,
            "all errors": every,
            "repaired": row.results.get(f"{split}.repaired", 0),
            "broken": row.results.get(f"{split}.broken", 0),
            "trainable parameters": row.results["parameters.trainable"],
            "seconds": row.results["seconds.fit"],
            "share on the class": of_class / base_of_class,
            "share elsewhere": (every - of_class) / (base_every - base_of_class),
            "share": every / base_every,
        }
        for name, value in shown.items():
            found.setdefault(name, []).append(float(value))
    if split.endswith("_base"):
        found |= {"trainable parameters": [0.0], "seconds": [0.0]}
    return found


def markdown(table: Table) -> str:
    """The table: mean and standard deviation over the jobs."""
    shown = [name for name in table["base"] if not name.startswith("share")]
    lines = [f"| method | {' | '.join(shown)} |", f"| --- |{' ---: |' * len(shown)}"]
    for method, values in table.items():
        cells = [_spread(values[name], int(name == "seconds")) for name in shown]
        for name, share in _SHARES.items():
            cells[shown.index(name)] += f" ({statistics.mean(values[share]):.0%})"
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], decimals: int) -> str:
    mean = f"{statistics.mean(values):,.{decimals}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def draw(table: Table, path: Path) -> None:
    """Draw errors on the class against errors elsewhere, with the Pareto front of the methods."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    points = {}
    for number, (method, values) in enumerate(table.items()):
        shares = [[100 * v for v in values[f"share {of}"]] for of in ("elsewhere", "on the class")]
        points[method] = x, y = tuple(map(statistics.mean, shares))
        dx, dy = (statistics.stdev(each) if len(each) > 1 else 0 for each in shares)
        color = plt.get_cmap("tab20")(number - 1) if method != "base" else "black"
        marker = "o^sDv"[number % 5]
        axes.errorbar(x, y, dy, dx, fmt=marker, color=color, elinewidth=0.8, label=method, zorder=2)
    front = sorted(p for p in points.values() if not any(_beats(q, p) for q in points.values()))
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


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
