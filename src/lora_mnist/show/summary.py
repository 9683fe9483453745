"""The summary of a sweep: its jobs' results.json as one table, one picture and the best command."""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import StatisticsError, mean, stdev
from typing import Any, NamedTuple

from lora_mnist.config.run import override_key
from lora_mnist.files import flatten, read_json, write_csv
from lora_mnist.project import format_command
from lora_mnist.run_paths import FAILED_FILE, RESULTS_FILE


class Job(NamedTuple):
    """One job of a sweep, as its folder has it."""

    folder: Path
    overrides: list[str]  # its command line
    values: dict[str, str]  # the same by key
    error: str | None  # why it failed, in a line
    results: dict[str, Any]  # results.json with flat keys; empty: it failed


#: Finished jobs that differ in their seed alone, or a single one: a row of the table.
Repeats = list[Job]


class Summary(NamedTuple):
    """The jobs of the sweep in ``folder``."""

    folder: Path
    metric: str  # sweep.metric, the key of a number in results.json; "": none
    swept: list[str]  # the keys in which jobs differ
    rows: list[Repeats]  # best first by the metric; equal ones are sorted by what was swept
    failed: list[Job]

    @property
    def best(self) -> Repeats | None:
        """The first row, if it has the metric."""
        has_metric = self.rows and aggregate(self.rows[0], self.metric) is not None
        return self.rows[0] if has_metric else None

    @property
    def has_seeds(self) -> bool:
        """True if a row has several seeds."""
        return any(len(row) > 1 for row in self.rows)

    @property
    def keys(self) -> list[str]:
        """The swept keys that tell the rows apart."""
        return [key for key in self.swept if key != "seed" or not self.has_seeds]


def summarize(folder: Path, metric: str) -> Summary:
    """Rank the jobs of a sweep; several seeds rank by their mean, so that luck does not win."""
    jobs = []
    files = [*folder.rglob(RESULTS_FILE), *folder.rglob(FAILED_FILE)]
    for path in sorted({file.parent for file in files}):
        failed = read_json(path / FAILED_FILE)  # a useless base has results, too
        results = {} if failed else read_json(path / RESULTS_FILE)
        overrides = (failed or results)["overrides"]
        own = {override_key(text): text.partition("=")[2] for text in overrides}
        jobs.append(Job(path, overrides, own, failed.get("error"), flatten(results)))
    swept = []
    for key in dict.fromkeys(key for job in jobs for key in job.values):
        values = set()
        for job in jobs:
            values.add(job.values.setdefault(key, ""))  # a search may set it in some jobs alone
        if len(values) > 1:
            swept.append(key)
    jobs.sort(key=lambda job: [numeric_sort_key(job.values[key]) for key in swept])
    rows: dict[object, Repeats] = {}
    for job in jobs:
        if job.error is None:
            setting = tuple(text for text in job.overrides if override_key(text) != "seed")
            rows.setdefault(setting, []).append(job)

    def rank(row: Repeats) -> tuple[bool, float]:
        value = aggregate(row, metric)
        return value is None, _sign(metric) * (value or 0)

    failed_jobs = [job for job in jobs if job.error is not None]
    return Summary(folder, metric, swept, sorted(rows.values(), key=rank), failed_jobs)


def numeric_sort_key(value: str) -> tuple[bool, float, str]:
    """Return the sort key of an override's value: numbers by size come first."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value


def aggregate(row: Repeats, key: str, of: Callable[[list[float]], float] = mean) -> float | None:
    """Return the mean, or ``stdev``, of the jobs' numbers under ``key`` in results.json."""
    values = [job.results.get(key) for job in row]
    with suppress(StatisticsError):  # too few
        return of([value for value in values if isinstance(value, int | float)])
    return None


def choose_direction(key: str) -> str:
    """Return ``max`` for accuracies, scores, precisions and repaired images, else ``min``."""
    larger_is_better = r"\.((mean_|balanced_|weighted_)?accuracy|score|precision|repaired)"
    return "max" if re.search(larger_is_better, key) else "min"


def find_base_key(key: str) -> str:
    """Return the key of the base's number: ``val_base.loss`` for ``val.loss``."""
    split, _, name = key.partition(".")
    return f"{split}_base.{name}"


def _sign(metric: str) -> int:
    """Return -1 if a larger metric is better, else 1."""
    return -1 if choose_direction(metric) == "max" else 1


def format_best_job(best: Repeats, metric: str) -> str:
    """Return a line with the best job's command, and whether the job beats the base."""
    verdict = "best"
    value, base = aggregate(best, metric), aggregate(best, find_base_key(metric))
    if value is not None and base is not None and _sign(metric) * (value - base) >= 0:
        verdict = "no job is better than the base; the nearest"
    if len(best) > 1:
        verdict += f" by the mean of {len(best)} seeds"
    entry = "eval" if best[0].results["stage"] == "eval" else "train"
    return f"{verdict}: {format_command(entry, best[0].overrides)}"


def format_sweep_table(summary: Summary, columns: Mapping[str, str]) -> str:
    """Return the table for the screen, with a last line for the base if all jobs share one."""
    from rich.table import Table

    from lora_mnist.show.screen import render_lines  # late: torch

    rows, metric = summary.rows, summary.metric
    title_of = {metric: metric}
    for title, key in columns.items():
        title_of[key] = title.replace("_", " ")
    shown = [key for key in title_of if any(aggregate(row, key) is not None for row in rows)]
    first = ["", *summary.keys]
    if summary.has_seeds:
        first.append("seeds")
    table = Table()
    for title in (*first, *(title_of[key] for key in shown)):
        table.add_column(title, justify="right", overflow="fold")
    for place, row in enumerate(rows, start=1):
        cells = [str(place), *(row[0].values[key] for key in summary.keys)]
        if summary.has_seeds:
            cells.append(str(len(row)))
        for key in shown:
            cells.append(_text(aggregate(row, key)))
            deviation = aggregate(row, key, stdev) if key == metric else None
            if deviation is not None:
                cells[-1] += f" ± {_text(deviation)}"
        table.add_row(*cells)
    bases = []
    for key in shown:
        of_bases = {aggregate(row, find_base_key(key)) for row in rows}
        bases.append(_text(of_bases.pop()) if len(of_bases) == 1 else "")
    if any(bases):
        table.add_section()
        table.add_row("base", *[""] * (len(first) - 1), *bases)
    is_terminal = sys.stdout.isatty()
    return render_lines([table], is_terminal, width=None if is_terminal else 200)


def _text(value: float | None) -> str:
    """Return a number in the table's format."""
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:#.4g}"


def write_summary(summary: Summary) -> None:
    """Write ``summary.csv``, a line a job."""
    lines = []
    for job in chain(*summary.rows, summary.failed):
        line: dict[str, Any] = {key: job.values[key] for key in summary.swept}
        line |= {"error": job.error, "folder": job.folder.relative_to(summary.folder)}
        for key, value in job.results.items():
            line.setdefault(key, value)
        lines.append(line)
    titles = {key: None for line in lines for key in line}
    rows = [[line.get(title) for title in titles] for line in lines]
    write_csv(summary.folder / "summary.csv", titles, rows)
