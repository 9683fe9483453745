"""The summary of a sweep: ``summary.csv``, ``summary.png`` and a table, from its jobs' files.

Jobs that differ in their seed alone are one row of the table: mean, standard deviation, number. The
best is best by the mean, so that no lucky seed wins.
"""

import csv
import re
import shutil
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lora_mnist.disk.files import atomic_write
from lora_mnist.sweep.command import command_line
from lora_mnist.sweep.folder import read_sweep
from lora_mnist.sweep.records import Job, natural, read_jobs

SEED = "seed"
#: Jobs that the table on the screen shows; summary.csv has them all.
_SHOWN = 20


@dataclass
class Group:
    """Finished jobs that differ in their seed alone; where no seed was swept, a single job."""

    jobs: list[Job]

    def mean(self, key: str | None) -> float | None:
        """The mean of what the jobs have for ``key`` of results.json."""
        values = [value for job in self.jobs if (value := job.value(key)) is not None]
        return mean(values) if values else None

    def std(self, key: str | None) -> float | None:
        """The standard deviation of the same, of a sample."""
        values = [value for job in self.jobs if (value := job.value(key)) is not None]
        return stdev(values) if len(values) > 1 else None


@dataclass
class Table:
    """Cells of text: a row a group, best first, then a row for each job that did not finish."""

    titles: list[str]
    rows: list[list[str]]
    #: What the jobs start from, where all of them have the same.
    start: list[str] | None
    #: How many of the rows are of groups.
    groups: int


class Ranked:
    """The jobs of the sweep in ``folder``, in order.

    Attributes:
        folder: the sweep's.
        sweep: what ``sweep.json`` says.
        jobs: all of them.
        groups: of finished jobs, best first by ``sweep.metric``; equals, and without a metric all,
            by what was swept.
        unfinished: the other jobs.
        has_seeds: whether the finished jobs differ in their seed.
        keys: what tells one group from another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep: dict[str, Any] = {"metric": None, "mode": "max", "start": None, "columns": []}
        self.sweep |= {"entry": "", "commands": [], **read_sweep(folder)}
        self.metric: str | None = self.sweep["metric"]
        self.jobs = read_jobs(folder)
        self.unfinished = [job for job in self.jobs if job.status != "finished"]
        finished = [job for job in self.jobs if job.status == "finished"]
        self.has_seeds = len({job.swept.get(SEED) for job in finished}) > 1
        self.keys = list(self.jobs[0].swept) if self.jobs else []
        if self.has_seeds:
            self.keys.remove(SEED)
        by_settings: dict[object, Group] = {}
        for job in sorted(finished, key=lambda job: [natural(v) for v in job.swept.values()]):
            group = tuple(self.settings(job).values()) if self.has_seeds else job.folder
            by_settings.setdefault(group, Group([])).jobs.append(job)
        sign = -1 if self.sweep["mode"] == "max" else 1

        def rank(group: Group) -> tuple[bool, float]:
            value = group.mean(self.metric)
            return value is None, sign * (value or 0)

        self.groups = sorted(by_settings.values(), key=rank)

    def settings(self, job: Job) -> dict[str, str]:
        """The values of :attr:`keys` in a job, and so in its group."""
        return {key: job.swept[key] for key in self.keys}

    @property
    def best(self) -> Group | None:
        """The first group, if it has the metric."""
        has_one = self.groups and self.groups[0].mean(self.metric) is not None
        return self.groups[0] if has_one else None

    def verdict(self) -> str:
        """What to call the best group: no best one where the jobs' start was better."""
        assert self.best is not None
        value, start = self.best.mean(self.metric), self.start_value(self.best, self.metric)
        if value is None or start is None:
            return "best"
        is_better = value > start if self.sweep["mode"] == "max" else value < start
        title = self.sweep["start"]["title"]
        return "best" if is_better else f"no job is better than the {title}; the nearest"

    def start_value(self, group: Group, key: str | None) -> float | None:
        """What the start of the group's jobs has for ``key``: ``val_base.loss`` of ``val.loss``."""
        if key is None or self.sweep["start"] is None:
            return None
        part, _, rest = key.partition(".")
        return group.mean(f"{part}{self.sweep['start']['suffix']}.{rest}")

    def best_command(self) -> str:
        """The command that runs the best job again; of several seeds, the first."""
        assert self.best is not None
        return command_line(self.best.jobs[0].overrides, self.sweep["entry"])

    def table(self, most: int) -> Table:
        """The table, of at most so many rows."""
        columns = [{"title": self.metric, "value": self.metric}] if self.metric else []
        known = {key for group in self.groups for job in group.jobs for key in job.results}
        columns = [c for c in [*columns, *self.sweep["columns"]] if c["value"] in known]
        seeds = ["seeds"] if self.has_seeds else []
        titles = ["", *self.keys, *seeds, *(self._title(column["title"]) for column in columns)]
        starts = []
        for column in columns:
            values = {self.start_value(group, column["value"]) for group in self.groups}
            only = values.pop() if len(values) == 1 else None
            starts.append("" if only is None else _text(only, column["value"]))
        rows = []
        for place, group in enumerate(self.groups[:most], start=1):
            cells = [*self.settings(group.jobs[0]).values()]
            cells += [str(len(group.jobs))] if seeds else []
            for column, start in zip(columns, starts, strict=True):
                # What all jobs start from needs no place before an arrow in every row.
                before = None if start else group.mean(column.get("before"))
                cells.append(_text(group.mean(column["value"]), column["value"]))
                if column["value"] == self.metric and group.std(self.metric) is not None:
                    cells[-1] += f" ± {group.std(self.metric):.4f}"
                if before is not None:
                    cells[-1] = f"{_text(before, column['value'])} -> {cells[-1]}"
            rows.append([str(place), *cells])
        groups = len(rows)
        for job in self.unfinished[: most - groups]:
            cells = ["", *self.settings(job).values(), *[""] * len(seeds), job.status]
            rows.append(cells + [""] * (len(titles) - len(cells)))
        foot = None
        if any(starts):
            foot = [self.sweep["start"]["title"], *[""] * len(self.keys + seeds), *starts]
        return Table(titles, rows, foot, groups)

    def _title(self, title: str) -> str:
        """``title`` with ``{KEY}`` as the value that all jobs have, else as KEY's last part."""

        def shared(match: re.Match[str]) -> str:
            key, values = match[1], set()
            for group in self.groups:
                for job in group.jobs:
                    listed = [v for k, v in job.results.items() if k.startswith(f"{key}.")]
                    value = job.results.get(key)
                    values.add(",".join(map(str, listed)) if value is None else str(value))
            only = values.pop() if len(values) == 1 else ""
            return only or key.rsplit(".", 1)[-1]

        return re.sub(r"\{([^{}]+)\}", shared, title)


def _text(value: float | None, key: str) -> str:
    if value is None:
        return ""
    digits = 1 if key.startswith("seconds.") or ".errors" in key else 4
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def summarize(ranked: Ranked) -> tuple[str, str | None]:
    """Write ``summary.csv`` and ``summary.png`` into the sweep's folder.

    Returns:
        The text to print, and what stood in the way of ranking.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = ranked.folder
    if not ranked.jobs:
        return "no job has started", None
    _write_csv(ranked, folder / "summary.csv")
    text = _draw_table(ranked)
    complaint = None
    if ranked.best:
        if ranked.jobs[0].swept:
            from lora_mnist.sweep.figure import Point, draw_sweep  # late: matplotlib

            points = [Point(job.swept, job.value(ranked.metric)) for job in ranked.jobs]
            if ranked.has_seeds and ranked.keys:  # else the seed is all there is to draw over
                points = [Point(ranked.settings(job), None) for job in ranked.unfinished]
                for group in ranked.groups:
                    value, std = group.mean(ranked.metric), group.std(ranked.metric)
                    points.append(Point(ranked.settings(group.jobs[0]), value, std))
            with atomic_write(folder / "summary.png") as path:
                draw_sweep(path, points, str(ranked.metric), ranked.sweep["mode"])
        text += f"\n{ranked.verdict()}: {ranked.best_command()}"
    elif ranked.metric and ranked.groups:
        numbers = [key for key in ranked.groups[0].jobs[0].results if key.startswith("val.")]
        expected = ", ".join(key for key in numbers if not re.search(r"\.\d+$", key))
        complaint = f"sweep.metric={ranked.metric}: no job has it; expected one of {expected}"
    for job in ranked.unfinished:
        text += f"\n{job.status}: {job}" + (f": {job.error}" if job.error else "")
    return f"{text}\nsweep: {folder}", complaint


def _write_csv(ranked: Ranked, path: Path) -> None:
    """A row a job; where seeds were swept, with its group's mean, standard deviation and size."""
    swept = list(ranked.jobs[0].swept)
    results = {key: None for job in ranked.jobs for key in job.results if key not in swept}
    of_group = [f"{ranked.metric}.mean", f"{ranked.metric}.std", "seeds"]
    of_group = of_group if ranked.has_seeds and ranked.metric else []
    columns = ["status", *swept, *of_group, *results, "error", "folder"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(column) for column in columns])
        for group in [*ranked.groups, *(Group([job]) for job in ranked.unfinished)]:
            numbers = (group.mean(ranked.metric), group.std(ranked.metric), len(group.jobs))
            for job in group.jobs:
                own = {"status": job.status, "error": job.error, "folder": job.folder}
                known = (
                    {} if job.status != "finished" else dict(zip(of_group, numbers, strict=False))
                )
                row = {**job.results, **known, **job.swept, **own}
                writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    """``value``, with a ``'`` before a text that a spreadsheet would run as a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return value


def _draw_table(ranked: Ranked) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable

    text = StringIO()
    is_terminal = sys.stdout.isatty()
    # Names come from users and files: [/b] and :x: in them are no markup.
    console = Console(
        file=text,
        width=shutil.get_terminal_size().columns if is_terminal else 200,
        force_terminal=is_terminal,
        markup=False,
        emoji=False,
        highlight=False,
    )
    table = ranked.table(_SHOWN)
    for narrow in (False, True):  # where it does not fit, titles break at their dots
        drawn = RichTable()
        for title in table.titles:
            title = title.replace(".", ".\n") if narrow else title
            drawn.add_column(title, justify="right", overflow="fold")
        for i, row in enumerate(table.rows):
            drawn.add_row(*row, style="bold" if i == 0 else "red" if i >= table.groups else "")
        if table.start:
            drawn.add_section()
            drawn.add_row(*table.start)
        wide = console.options.update(max_width=1000)
        if console.measure(drawn, options=wide).maximum <= console.width:
            break
    console.print(drawn)
    lines = text.getvalue().rstrip()
    more = len(ranked.groups) + len(ranked.unfinished) - len(table.rows)
    return lines + (f"\n... {more} more in summary.csv" if more else "")
