"""The summary of a sweep, from its jobs' files: ``summary.csv``, a table, points to draw.

Jobs that differ only in their seed are one row of the table: mean, standard deviation, number. The
best row is the one with the best mean, so that no lucky seed wins.
"""

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lora_mnist.repair.significance import LEVEL, p_text
from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.disk.numbers import better_end
from lora_mnist.project import command_line
from lora_mnist.sweep.jobs import SWEEP_FILE, Job, numeric_sort_key, read_jobs

#: Rows of the table on the screen; summary.csv has all jobs.
_MAX_ROWS = 20


@dataclass
class Group:
    """Finished jobs that differ only in their seed, or a single job."""

    jobs: list[Job]

    def values(self, key: object) -> list[float]:
        """The jobs' numbers under ``key`` in results.json."""
        values = [job.results.get(str(key)) for job in self.jobs]
        return [value for value in values if isinstance(value, int | float)]

    def mean(self, key: object) -> float | None:
        values = self.values(key)
        return mean(values) if values else None

    def base_mean(self, key: object) -> float | None:
        """The mean of the base's number: of ``val_base.loss`` for ``val.loss``."""
        split, _, name = str(key).partition(".")
        return self.mean(f"{split}_base.{name}")

    def std(self, key: object) -> float | None:
        """The sample standard deviation of two numbers or more."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None


class Ranked:
    """The jobs of the sweep in ``folder``, ranked.

    ``groups`` holds the finished jobs, best first by ``sweep.metric``. Equal ones, and all jobs of
    a sweep without a metric, are sorted by what was swept. ``keys`` tell the groups apart. ``rows``
    are the groups, then the other jobs. ``sign`` turns the metric so that less is better.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep: dict[str, Any] = read_json(folder / SWEEP_FILE)
        self.metric: str | None = self.sweep["metric"]
        self.jobs = read_jobs(folder)
        self.unfinished = [job for job in self.jobs if job.status != "finished"]
        finished = [job for job in self.jobs if job.status == "finished"]
        self.has_seeds = len({job.swept.get("seed") for job in finished}) > 1
        self.keys = list(self.jobs[0].swept) if self.jobs else []
        if self.has_seeds:
            self.keys.remove("seed")
        groups: dict[object, Group] = {}
        for job in sorted(
            finished, key=lambda job: [numeric_sort_key(v) for v in job.swept.values()]
        ):
            group = tuple(self.settings(job).values()) if self.has_seeds else job.folder
            groups.setdefault(group, Group([])).jobs.append(job)
        self.sign = -1 if better_end(str(self.metric)) == "max" else 1

        def rank(group: Group) -> tuple[bool, float]:
            value = group.mean(self.metric)
            return value is None, self.sign * (value or 0)

        self.groups = sorted(groups.values(), key=rank)
        has_best = self.groups and self.groups[0].mean(self.metric) is not None
        self.best = self.groups[0] if has_best else None
        #: True where the jobs' dials say which job to take, and how much of its adapter.
        self.has_front = not self.has_seeds and any(
            "dial.errors_of_target.0" in job.results for job in finished
        )
        self.rows = [*self.groups, *(Group([job]) for job in self.unfinished)]

    def settings(self, job: Job) -> dict[str, str]:
        """A job's values of :attr:`keys`, which its whole group shares."""
        return {key: job.swept[key] for key in self.keys}

    def findings(self) -> list[str]:
        """The best job, unless a front advises one, and those that did not finish, a line each."""
        lines = []
        if self.best and not self.has_front:
            # The first of several seeds.
            command = command_line(self.best.jobs[0].overrides, self.sweep["entry"])
            lines.append(f"{self._verdict(self.best)}: {command}")
        for job in self.unfinished:
            settings = " ".join(f"{key}={value}" for key, value in job.swept.items())
            error = f": {job.error}" if job.error else ""
            lines.append(f"{job.status}: {settings or job.folder}{error}")
        return lines

    def _verdict(self, best: Group) -> str:
        """How the best group compares with the base on the same images.

        Several seeds share their images, and their p-values have no mean. These images chose the
        best of several groups: its p-value is multiplied by their number (Bonferroni; Dunn
        1961, "Multiple Comparisons Among Means", JASA 56).
        """
        value, base = best.mean(self.metric), best.base_mean(self.metric)
        text, count = "best", len(self.groups)
        if value is not None and base is not None and self.sign * (value - base) >= 0:
            text = "no job is better than the base; the nearest"
        std, metric = best.std(self.metric), str(self.metric)
        if std is not None:
            numbers = f"{_text(value, metric)} ± {_text(std, metric)}"
            if base is not None:
                numbers += f", base {_text(base, metric)}"
            return f"{text} (mean of {len(best.jobs)} seeds {numbers})"
        key = re.sub("accuracy|errors", "p_value", metric)
        p_value = best.mean(key) if text == "best" and "p_value" in key else None
        if p_value is None or count * p_value <= LEVEL:
            return text
        chance = p_text(min(1.0, count * p_value)) + (f" for the best of {count}" * (count > 1))
        return f"best, but beside the base it may be chance ({chance})"

    def points(self) -> list[tuple[dict[str, str], float, float | None]]:
        """Each group's swept values, and the metric's mean and standard deviation over it."""
        groups, points = self.groups, []
        if not self.keys:  # the seed is all there is to draw over
            groups = [Group([job]) for group in groups for job in group.jobs]
        for group in groups:
            value = group.mean(self.metric)
            if value is not None:
                swept = self.settings(group.jobs[0]) or group.jobs[0].swept
                points.append((swept, value, group.std(self.metric)))
        return points

    def table(self, max_rows: int) -> tuple[list[str], list[list[str]], list[str] | None]:
        """Titles, at most ``max_rows`` rows, and the row of the base, where all jobs share one.

        The columns are those of ``sweep.columns``.
        """
        title_of = {self.metric: self.metric} if self.metric else {}
        for title, key in self.sweep["columns"].items():
            title_of[key] = title.replace("_", " ")
        numbers = {key for job in self.jobs for key in job.results}
        title_of = {key: title for key, title in title_of.items() if key in numbers}
        base = []
        for key in title_of:
            values = {group.base_mean(key) for group in self.groups}
            base.append(_text(values.pop(), key) if len(values) == 1 else "")
        seeds = ["seeds"] if self.has_seeds else []
        rows = []
        for place, group in enumerate(self.rows[:max_rows], start=1):
            job = group.jobs[0]
            cells = [str(place) if job.status == "finished" else job.status]
            cells += self.settings(job).values()
            if self.has_seeds:
                cells.append(str(len(group.jobs)))
            for key, shared in zip(title_of, base, strict=True):
                cell, std = _text(group.mean(key), key), group.std(key)
                if key == self.metric and std is not None:
                    cell += f" ± {std:.4f}"
                before = "" if shared else _text(group.base_mean(key), key)
                cells.append(f"{before} -> {cell}" if before else cell)
            rows.append(cells)
        titles = ["", *self.keys, *seeds, *title_of.values()]
        blank = [""] * (len(self.keys) + len(seeds))
        return titles, rows, ["base", *blank, *base] if any(base) else None


def _text(value: float | None, key: str) -> str:
    if value is None:
        return ""
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    if key.startswith("dial."):
        return f"{value:g}"
    digits = 1 if key.startswith("seconds.") or re.search(r"\.(errors|false_calls)", key) else 4
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def summarize(ranked: Ranked) -> str:
    """Write ``summary.csv`` of at least one job; return the text to print."""
    _write_csv(ranked)
    return "\n".join([_draw_table(ranked), *ranked.findings(), f"sweep: {ranked.folder}"])


def _write_csv(ranked: Ranked) -> None:
    """Write a row a job; where seeds were swept, with its group's mean, deviation and size."""
    rows = []
    for group in ranked.rows:
        for job in group.jobs:
            row: dict[str, Any] = {"status": job.status, **job.swept}
            if ranked.has_seeds and ranked.metric:
                row[f"{ranked.metric}.mean"] = group.mean(ranked.metric)
                row[f"{ranked.metric}.std"] = group.std(ranked.metric)
                row["seeds"] = len(group.jobs)
            row |= {"error": job.error, "folder": job.folder}
            rows.append(row | job.results | row)  # in this order of columns
    columns = {key: None for row in rows for key in row}
    path = ranked.folder / "summary.csv"
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _draw_table(ranked: Ranked) -> str:
    from rich.console import Console
    from rich.table import Table

    # Names come from users and files: [/b] and :x: in them are no markup.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    titles, rows, base = ranked.table(_MAX_ROWS)
    table = Table()
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    for place, row in enumerate(rows):
        style = "bold" if place == 0 else ""
        table.add_row(*row, style="red" if place >= len(ranked.groups) else style)
    if base:
        table.add_section()
        table.add_row(*base)
    with console.capture() as capture:
        console.print(table)
    more = len(ranked.rows) - len(rows)
    return capture.get().rstrip() + (f"\n... {more} more in summary.csv" if more else "")
