"""What the study shows: tables in a page, between markers."""

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
    row = {
        **shares(after, before),
        "base class": before[0],
        "base all": before[1],
        "trained weights": results["parameters"]["trainable"],
    }
    for name in ("repaired", "broken"):
        if name in results["test"]:  # weighted fine-tuning counts errors alone
            row[name] = results["test"][name]
    return row


def shares(after: tuple[int, int], before: tuple[int, int]) -> dict[str, float]:
    """Errors over the base's, in percent: on the class or classes, and all."""
    return {"class": 100 * after[0] / before[0], "all": 100 * after[1] / before[1]}


def markdown(rows: Rows) -> str:
    """The table of ``rows``: mean, standard deviation and worst case over the runs.

    Args:
        rows: by method; with more than shares in them, the first is the base.
    """
    heads = ["on the class: mean, worst", "of all: mean, worst"]
    counts = ["repaired", "broken", "trained weights"] if "base" in rows else []
    heads += [*counts, *(["fewer in all"] if counts else [])]
    lines = [f"| method | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for method, runs in rows.items():
        cells = [method]
        for name in ("class", "all"):
            values = [run[name] for run in runs]
            cell = f"{statistics.mean(values):.1f}%"
            if len(set(values)) > 1:
                cell += f" ± {statistics.stdev(values):.1f}, {max(values):.0f}%"
            cells.append(cell)
        cells += [_mean(runs, name) if name in runs[0] else "" for name in counts]
        if counts:
            cells.append(_fewer(runs))
        lines.append(f"| {' | '.join(cells)} |")
    if counts:
        few, many = (_mean(rows["base"], f"base {name}") for name in ("class", "all"))
        lines += ["", f"The base's errors, on average: {few} on the class, {many} in all."]
    return "\n".join(lines)


def side_by_side(tasks: Mapping[str, Rows]) -> str:
    """A table with a column for each task: errors on the class and of all, the mean in percent.

    The last column says in how many of all cases a method leaves fewer errors than the base has.
    """
    lines = [
        f"| method | {' | '.join(tasks)} | fewer in all |",
        f"| --- |{' ---: |' * len(tasks)} ---: |",
    ]
    for method in next(iter(tasks.values())):
        cells, every = [method], []
        for rows in tasks.values():
            runs = rows.get(method)
            if runs is None:
                cells.append("")
                continue
            every += runs
            start = "base " if method == "base" else ""
            cells.append(f"{_mean(runs, f'{start}class')} / {_mean(runs, f'{start}all')}")
        lines.append(f"| {' | '.join(cells)} | {_fewer(every)} |")
    return "\n".join(lines)


def _fewer(runs: list[dict[str, float]]) -> str:
    return f"{sum(run['all'] < 100 for run in runs)} of {len(runs)}"


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
