"""The summary of a sweep: ``summary.csv``, ``summary.png`` and a table, from its jobs' files.

Jobs that differ in their seed alone are one row of the table: mean, standard deviation, number. The
best is best by the mean, so that no lucky seed wins.
"""

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lora_mnist.classifier.significance import LEVEL, mcnemar, p_text
from lora_mnist.disk.files import atomic_write
from lora_mnist.sweep.command import command_line
from lora_mnist.sweep.folder import SWEEP_FILE
from lora_mnist.sweep.records import Job, natural, read_jobs, read_json

SEED = "seed"
#: Jobs that the table on the screen shows; summary.csv has them all.
_SHOWN = 20


@dataclass
class Group:
    """Finished jobs that differ in their seed alone; where no seed was swept, a single job."""

    jobs: list[Job]

    def values(self, key: str | None) -> list[float]:
        """What the jobs have for ``key`` of results.json."""
        values = [job.value(key) for job in self.jobs]
        return [value for value in values if value is not None]

    def mean(self, key: str | None) -> float | None:
        """Their mean."""
        values = self.values(key)
        return mean(values) if values else None

    def std(self, key: str | None) -> float | None:
        """Their standard deviation, of a sample."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None


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
        best: the first group, if it has the metric.
        errors: the errors that the metric counts, a key of results.json; ``None`` of another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep: dict[str, Any] = read_json(folder / SWEEP_FILE)
        self.metric: str | None = self.sweep["metric"]
        counted = (self.metric or "").replace("accuracy", "errors")
        self.errors = counted if ".errors" in counted else None
        self.jobs = read_jobs(folder)
        self.unfinished = [job for job in self.jobs if job.status != "finished"]
        finished = [job for job in self.jobs if job.status == "finished"]
        self.has_seeds = len({job.swept.get(SEED) for job in finished}) > 1
        self.keys = list(self.jobs[0].swept) if self.jobs else []
        if self.has_seeds:
            self.keys.remove(SEED)
        groups: dict[object, Group] = {}
        for job in sorted(finished, key=lambda job: [natural(v) for v in job.swept.values()]):
            group = tuple(self.settings(job).values()) if self.has_seeds else job.folder
            groups.setdefault(group, Group([])).jobs.append(job)
        sign = -1 if self.sweep["mode"] == "max" else 1

        def rank(group: Group) -> tuple[bool, float]:
            value = group.mean(self.metric)
            return value is None, sign * (value or 0)

        self.groups = sorted(groups.values(), key=rank)
        has_best = self.groups and self.groups[0].mean(self.metric) is not None
        self.best = self.groups[0] if has_best else None

    def settings(self, job: Job) -> dict[str, str]:
        """The values of :attr:`keys` in a job, and so in its group."""
        return {key: job.swept[key] for key in self.keys}

    def verdict(self) -> str:
        """What to call the best group: no best one where the jobs' start was better.

        Where the start got the same images, and chance explains the lead, it says so.
        """
        assert self.best is not None
        value, start = self.best.mean(self.metric), self.start_value(self.best, self.metric)
        if value is None or start is None:
            return "best"
        is_better = value > start if self.sweep["mode"] == "max" else value < start
        title = self.sweep["start"]["title"]
        if not is_better:
            return f"no job is better than the {title}; the nearest"
        p_value = self.best.mean((self.errors or "").replace("errors", "p_value"))
        if p_value is None or p_value <= LEVEL:
            return "best"
        return f"best, but beside the {title} it may be chance ({p_text(p_value)})"

    def rivals(self) -> str:
        """Which of the next groups are no worse than chance allows, in a line; or nothing.

        What tells two jobs apart is the images that one of them alone gets wrong. They are not
        known here: McNemar's test is told that no image was wrong for both. So it may call jobs
        equal that share many errors and differ, but no jobs different that are equal. Of several
        seeds the mean counts, as if it were one job's: their images are the same.
        """
        of = f"{str(self.errors).partition('.')[0]}.images_per_class."
        counted = []
        for group in self.groups:
            images = {key: v for key, v in group.jobs[0].results.items() if key.startswith(of)}
            counted.append((group.mean(self.errors), images))
        if not counted or counted[0][0] is None:
            return ""
        best, count, text = round(counted[0][0]), 0, ""
        for errors, images in counted[1:]:
            if errors is None or images != counted[0][1]:
                break
            p_value = mcnemar(best, round(errors))
            if p_value <= LEVEL:
                break
            count += 1
            text = f"up to {round(errors):,} errors beside {best:,}, {p_text(p_value)}"
        are = "one is" if count == 1 else f"{count} are"
        return text and f"the next {are} no worse than chance allows: {text}"

    def start_value(self, group: Group, key: str | None) -> float | None:
        """What the start of the group's jobs has for ``key``: ``val_base.loss`` of ``val.loss``."""
        if key is None or self.sweep["start"] is None:
            return None
        part, _, rest = key.partition(".")
        return group.mean(f"{part}{self.sweep['start']['suffix']}.{rest}")

    def labels(self) -> list[str]:
        """Tags and notes that all jobs have, a line each."""
        return [f"{key}: {self._shared(key)}" for key in ("tags", "notes") if self._shared(key)]

    def _shared(self, key: str) -> str:
        """What all jobs have for ``key`` of results.json, joined by commas; else nothing."""
        texts = set()
        for job in self.jobs:
            if job.results:
                own = [v for k, v in job.results.items() if f"{k}.".startswith(f"{key}.")]
                texts.add(",".join(str(value) for value in own if value is not None))
        return texts.pop() if len(texts) == 1 else ""

    def best_command(self) -> str:
        """The command that runs the best job again; of several seeds, the first."""
        assert self.best is not None
        return command_line(self.best.jobs[0].overrides, self.sweep["entry"])

    def table(self, most: int) -> tuple[list[str], list[list[str]], list[str] | None]:
        """Titles; at most so many rows; and what the jobs start from, if all have the same.

        The groups come first, best first, then the jobs that did not finish, or failed; they keep
        the numbers that they have.
        """
        title_of = {self.metric: self.metric} if self.metric else {}
        title_of |= {column["value"]: column["title"] for column in self.sweep["columns"]}
        known = {key for job in self.jobs for key in job.results}
        columns = [key for key in title_of if key in known]
        shared = []
        for key in columns:
            values = {self.start_value(group, key) for group in self.groups}
            shared.append(_text(values.pop(), key) if len(values) == 1 else "")
        seeds = ["seeds"] if self.has_seeds else []
        titles = ["", *self.keys, *seeds, *(self._title(title_of[key]) for key in columns)]
        rows = []
        for place, group in enumerate(self.groups[:most], start=1):
            cells = [str(place), *self.settings(group.jobs[0]).values()]
            cells += [str(len(group.jobs))] if seeds else []
            for key, start in zip(columns, shared, strict=True):
                cell, std = _text(group.mean(key), key), group.std(key)
                if key == self.metric and std is not None:
                    cell += f" ± {std:.4f}"
                # What all jobs start from has a row of its own.
                before = "" if start else _text(self.start_value(group, key), key)
                cells.append(f"{before} -> {cell}" if before else cell)
            rows.append(cells)
        for job in self.unfinished[: most - len(rows)]:
            settings = [*self.settings(job).values(), *[""] * len(seeds)]
            cells = ["", *settings, job.status]
            if job.results:
                cells = [job.status, *settings, *(_text(job.value(key), key) for key in columns)]
            rows.append(cells + [""] * (len(titles) - len(cells)))
        foot = None
        if any(shared):
            foot = [self.sweep["start"]["title"], *[""] * len(self.keys + seeds), *shared]
        return titles, rows, foot

    def _title(self, title: str) -> str:
        """``title`` with ``{KEY}`` as the value that all jobs have, else as KEY's last part."""
        for key in re.findall(r"\{([^{}]+)\}", title):
            title = title.replace(f"{{{key}}}", self._shared(key) or key.rsplit(".", 1)[-1])
        return title


def _text(value: float | None, key: str) -> str:
    if value is None:
        return ""
    digits = 1 if key.startswith("seconds.") or ".errors" in key else 4
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def summarize(ranked: Ranked) -> str:
    """Write ``summary.csv`` and ``summary.png`` of at least one job; return the text to print."""
    _write_csv(ranked, ranked.folder / "summary.csv")
    text = _draw_table(ranked)
    if ranked.best:
        groups, metric = ranked.groups, str(ranked.metric)
        if not ranked.keys:  # the seed is all there is to draw over
            groups = [Group([job]) for group in groups for job in group.jobs]
        elif ranked.has_seeds:
            metric = f"mean {metric} over seeds"
        points = []
        for group in groups:
            value, std = group.mean(ranked.metric), group.std(ranked.metric)
            if value is not None:
                points.append((ranked.settings(group.jobs[0]) or group.jobs[0].swept, value, std))
        if ranked.jobs[0].swept:
            from lora_mnist.sweep.figure import draw_sweep  # late: matplotlib

            with atomic_write(ranked.folder / "summary.png") as path:
                draw_sweep(path, points, metric, ranked.sweep["mode"])
        text += f"\n{ranked.verdict()}: {ranked.best_command()}"
        if rivals := ranked.rivals():
            text += f"\n{rivals}"
    for job in ranked.unfinished:
        settings = " ".join(f"{key}={value}" for key, value in job.swept.items())
        text += f"\n{job.status}: {settings or job.folder}" + (
            f": {job.error}" if job.error else ""
        )
    return "\n".join([text, *ranked.labels(), f"sweep: {ranked.folder}"])


def _write_csv(ranked: Ranked, path: Path) -> None:
    """A row a job; where seeds were swept, with its group's mean, standard deviation and size."""
    rows = []
    for group in [*ranked.groups, *(Group([job]) for job in ranked.unfinished)]:
        for job in group.jobs:
            row: dict[str, Any] = {"status": job.status, **job.swept}
            if ranked.has_seeds and ranked.metric:
                row[f"{ranked.metric}.mean"] = group.mean(ranked.metric)
                row[f"{ranked.metric}.std"] = group.std(ranked.metric)
                row["seeds"] = len(group.jobs)
            row |= {"error": job.error, "folder": job.folder}
            row |= {key: value for key, value in job.results.items() if key not in row}
            rows.append(row)
    columns = {key: None for row in rows for key in row}
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _draw_table(ranked: Ranked) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable

    # Names come from users and files: [/b] and :x: in them are no markup.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    titles, rows, start = ranked.table(_SHOWN)
    columns = zip(titles, *rows, strict=False)
    is_wide = sum(3 + max(map(len, column)) for column in columns) >= console.width
    drawn = RichTable()
    for title in titles:
        title = title.replace(".", ".\n") if is_wide else title
        drawn.add_column(title, justify="right", overflow="fold")
    for i, row in enumerate(rows):
        style = "red" if i >= len(ranked.groups) else "bold" if i == 0 else ""
        drawn.add_row(*row, style=style)
    if start:
        drawn.add_section()
        drawn.add_row(*start)
    with console.capture() as capture:
        console.print(drawn)
    more = len(ranked.groups) + len(ranked.unfinished) - len(rows)
    return capture.get().rstrip() + (f"\n... {more} more in summary.csv" if more else "")
