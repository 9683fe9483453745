"""The summary of a sweep, from its jobs' files: ``summary.csv``, a table, points to draw.

Jobs that differ only in their seed are one row of the table: mean, standard deviation, number. The
best row is the one with the best mean, so that no lucky seed wins.
"""

import csv
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.numbers import better_end
from lora_mnist.project import command_line
from lora_mnist.repair.significance import LEVEL, p_text
from lora_mnist.sweep.jobs import Job, numeric_sort_key, read_jobs

#: Rows of the table on the screen; summary.csv has all jobs.
_MAX_ROWS = 20


@dataclass
class Row:
    """Finished jobs that differ only in their seed, or a single job."""

    jobs: list[Job]

    def values(self, key: object) -> list[float]:
        """The jobs' numbers under ``key`` in results.json."""
        values = [job.results.get(str(key)) for job in self.jobs]
        return [value for value in values if isinstance(value, int | float)]

    def mean(self, key: object) -> float | None:
        values = self.values(key)
        return mean(values) if values else None

    def std(self, key: object) -> float | None:
        """The sample standard deviation of two numbers or more."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None

    def base(self, key: object) -> float | None:
        """The mean of the base's number: ``val_base.loss`` for ``val.loss``."""
        split, _, name = str(key).partition(".")
        return self.mean(f"{split}_base.{name}")


@dataclass
class Summary:
    """The jobs of the sweep in ``folder``, in rows."""

    folder: Path
    metric: str | None  # of configs/sweep, as are the columns: a number in results.json by title
    columns: Mapping[str, str]
    jobs: list[Job]
    keys: list[str]  # they tell the rows apart
    finished: list[Row]  # best first by the metric; equal ones are sorted by what was swept
    failed: list[Job]
    has_seeds: bool

    @property
    def rows(self) -> list[Row]:
        """All rows: those of finished jobs come first."""
        return [*self.finished, *(Row([job]) for job in self.failed)]

    @property
    def best(self) -> Row | None:
        """The first row, if it has the metric."""
        first = next(iter(self.finished), None)
        return first if first and first.mean(self.metric) is not None else None

    @property
    def has_front(self) -> bool:
        """Whether the jobs' dials say which job to take, and how much of its adapter."""
        has_dials = any("dial.errors_of_target.0" in job.results for job in self.jobs)
        return has_dials and not self.has_seeds


def summarize(folder: Path, metric: str | None, columns: Mapping[str, str]) -> Summary:
    """Rank the jobs in ``folder`` and write ``summary.csv``."""
    jobs = read_jobs(folder)
    jobs.sort(key=lambda job: [numeric_sort_key(value) for value in job.swept.values()])
    finished = [job for job in jobs if job.results]
    failed = [job for job in jobs if not job.results]
    has_seeds = len({job.swept.get("seed") for job in finished}) > 1
    keys = list(jobs[0].swept) if jobs else []
    if has_seeds:
        keys.remove("seed")
    groups: dict[object, Row] = {}
    for job in finished:
        # Seeds are repetitions of one setting only if they start from the same base.
        setting = (*(job.swept[key] for key in keys), job.base_sha256)
        groups.setdefault(setting if has_seeds else job.folder, Row([])).jobs.append(job)
    sign = _sign(metric)

    def rank(row: Row) -> tuple[bool, float]:
        value = row.mean(metric)
        return value is None, sign * (value or 0)

    rows = sorted(groups.values(), key=rank)
    summary = Summary(folder, metric, columns, jobs, keys, rows, failed, has_seeds)
    _write_csv(summary)
    return summary


def _sign(metric: str | None) -> int:
    """Times this, less of the metric is better."""
    return -1 if better_end(str(metric)) == "max" else 1


def _write_csv(summary: Summary) -> None:
    """Write a line a job."""
    lines = []
    for row in summary.rows:
        for job in row.jobs:
            line = {"status": job.status, **job.swept, "error": job.error, "folder": job.folder}
            lines.append(line | job.results | line)  # in this order of columns
    columns = {key: None for line in lines for key in line}
    path = summary.folder / "summary.csv"
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


def findings(summary: Summary) -> list[str]:
    """The best job, unless a front advises one, and those that failed, a line each."""
    lines = []
    best = summary.best
    if best and not summary.has_front:  # the command of the first of several seeds
        lines.append(f"{_verdict(summary, best)}: {command_line(best.jobs[0].overrides)}")
    for job in summary.failed:
        settings = " ".join(f"{key}={value}" for key, value in job.swept.items())
        error = f": {job.error}" if job.error else ""
        lines.append(f"{job.status}: {settings or job.folder}{error}")
    return lines


def _verdict(summary: Summary, best: Row) -> str:
    """How the best row compares with the base on the same images.

    Several seeds share their images, and their p-values have no mean. These images chose the
    best of several rows: its p-value is multiplied by their number (Bonferroni; Dunn 1961,
    "Multiple Comparisons Among Means", JASA 56).
    """
    metric, count = str(summary.metric), len(summary.finished)
    value, base, std = best.mean(metric), best.base(metric), best.std(metric)
    is_better = value is None or base is None or _sign(metric) * (value - base) < 0
    text = "best" if is_better else "no job is better than the base; the nearest"
    if std is not None:
        beside = "" if base is None else f", base {_text(base)}"
        return f"{text} (mean of {len(best.jobs)} seeds {_text(value)} ± {_text(std)}{beside})"
    key = re.sub("accuracy|errors", "p_value", metric)
    p_value = best.mean(key) if "p_value" in key else None
    if not is_better or p_value is None or count * p_value <= LEVEL:
        return text
    chance = p_text(min(1.0, count * p_value)) + (f" for the best of {count}" * (count > 1))
    return f"best, but beside the base it may be chance ({chance})"


def points(summary: Summary) -> list[tuple[dict[str, str], float, float | None]]:
    """Each row's swept values, and the metric's mean and standard deviation over it."""
    points = []
    for row in summary.finished:
        value = row.mean(summary.metric)
        if value is not None:
            swept = {key: row.jobs[0].swept[key] for key in summary.keys}
            points.append((swept, value, row.std(summary.metric)))
    return points


def table(summary: Summary, most: int) -> tuple[list[str], list[list[str]], list[str] | None]:
    """Titles, at most ``most`` rows, and the row of the base, where all jobs share one."""
    title_of = {summary.metric: summary.metric} if summary.metric else {}
    for title, key in summary.columns.items():
        title_of[key] = title.replace("_", " ")
    numbers = {key for job in summary.jobs for key in job.results}
    title_of = {key: title for key, title in title_of.items() if key in numbers}
    base = []
    for key in title_of:
        values = {row.base(key) for row in summary.finished}
        base.append(_text(values.pop()) if len(values) == 1 else "")
    seeds = ["seeds"] if summary.has_seeds else []
    rows: list[list[str]] = []
    for row in summary.rows[:most]:
        job = row.jobs[0]
        cells = [str(len(rows) + 1) if job.results else job.status]
        cells += [job.swept[key] for key in summary.keys]
        if summary.has_seeds:
            cells.append(str(len(row.jobs)))
        for key, shared in zip(title_of, base, strict=True):
            cell, std = _text(row.mean(key)), row.std(key)
            if key == summary.metric and std is not None:
                cell += f" ± {_text(std)}"
            before = "" if shared else _text(row.base(key))
            cells.append(f"{before} -> {cell}" if before else cell)
        rows.append(cells)
    titles = ["", *summary.keys, *seeds, *title_of.values()]
    blank = [""] * (len(summary.keys) + len(seeds))
    return titles, rows, ["base", *blank, *base] if any(base) else None


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:#.4g}"


def table_text(summary: Summary) -> str:
    """The table for the screen."""
    from rich.console import Console
    from rich.table import Table

    # Names come from users and files: [/b] and :x: in them are no markup.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    titles, rows, base = table(summary, _MAX_ROWS)
    drawn = Table()
    for title in titles:
        drawn.add_column(title, justify="right", overflow="fold")
    for place, row in enumerate(rows):
        style = "bold" if place == 0 else ""
        drawn.add_row(*row, style="red" if place >= len(summary.finished) else style)
    if base:
        drawn.add_section()
        drawn.add_row(*base)
    with console.capture() as capture:
        console.print(drawn)
    more = len(summary.rows) - len(rows)
    return capture.get().rstrip() + (f"\n... {more} more in summary.csv" if more else "")
