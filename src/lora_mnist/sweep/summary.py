"""The summary of a sweep: ``summary.csv``, ``summary.png`` and a table, from its jobs' files.

Reads what :mod:`~lora_mnist.sweep.records` reads and nothing else, so that ten thousand jobs are
summarised in seconds. Which columns the table has is set in ``configs/sweep/default.yaml``. Imports
no torch, and matplotlib only to draw.
"""

import csv
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import one_line
from lora_mnist.sweep.command import Column, Ranking, Start, command_line
from lora_mnist.sweep.records import Row, is_number, natural, read_rows
from lora_mnist.sweep.screen import columns_of_screen

if TYPE_CHECKING:
    from rich.table import Table

STUDY_FILE = "optuna.db"

#: Jobs that the table on the screen shows; summary.csv has them all.
_SHOWN = 20


@dataclass(frozen=True)
class Summary:
    """A sweep's outcome.

    Attributes:
        rows: all jobs, best first.
        text: the table to print.
        complaint: what stood in the way of ranking.
        unwritten: what kept the files from being written.
    """

    rows: list[Row]
    text: str
    complaint: str | None = None
    unwritten: str | None = None


def summarize(
    folder: Path,
    metric: str | None,
    mode: str,
    columns: Sequence[Column],
    entry: str,
    metrics: Sequence[str] = (),
    start: Start | None = None,
) -> Summary:
    """Write ``summary.csv`` and ``summary.png`` into the sweep's folder.

    Args:
        folder: the sweep's folder.
        metric: key of results.json by which to rank, nested keys joined by dots; ``None`` lists the
            jobs by what was swept.
        mode: "max" or "min": which end of ``metric`` is best.
        columns: of the table, after the metric's own; one that no job has is left out.
        entry: script of the commands that the summary shows, such as train.py.
        metrics: what to offer where no job has ``metric``.
        start: what the jobs start from; the best job must be better.

    Raises:
        OSError: if the folder cannot be read.
    """
    rows = _ranked(read_rows(folder), metric, mode)
    if not rows:
        return Summary(rows, "no job has started")
    finished = [row for row in rows if row.status == "finished"]
    ranked = [row for row in finished if row.value(metric) is not None]
    complaint = None
    if metric and finished and not ranked:
        had = [key for key in metrics if any(is_number(row.results.get(key)) for row in finished)]
        expected = f"one of {', '.join(had)}, or null" if had else "null"
        complaint = f"sweep.metric={metric}: no job has it; expected {expected}"
    unwritten = None
    try:
        _write_csv(rows, folder / "summary.csv")
        if ranked and ranked[0].swept:
            _write_picture(rows, folder / "summary.png", str(metric), mode)
    except OSError as error:
        unwritten = f"the summary cannot be written ({error.strerror or error})"
    text = _table(rows, metric, columns, start)
    if ranked:
        verdict = best_or_none(ranked[0], Ranking(metric, mode, start=start))
        command = one_line(command_line(entry, ranked[0].arguments), most=64 << 10)
        text += f"\n{verdict}: {command}{_importances(folder)}"
    for row in rows:
        if row.status != "finished":
            text += f"\n{row.status}: {_swept_text(row)}" + (f": {row.error}" if row.error else "")
    return Summary(rows, f"{text}\nsweep: {folder}", complaint, unwritten)


def _ranked(rows: list[Row], metric: str | None, mode: str) -> list[Row]:
    """Best first; among equals, and without a metric, by what was swept."""
    sign = -1 if mode == "max" else 1

    def rank(row: Row) -> tuple[Any, ...]:
        value = row.value(metric)
        order = 0 if row.status == "finished" and (value is not None or not metric) else 1
        order = order if row.status == "finished" else 2
        return order, sign * (value or 0), [natural(v) for v in row.swept.values()], row.folder

    return sorted(rows, key=rank)


def best_or_none(best: Row, ranking: Ranking) -> str:
    """What to call the first of the ranked jobs: no best one where the start was better."""
    value, start = best.value(ranking.metric), start_value(best, ranking.metric, ranking.start)
    if ranking.start is None or value is None or start is None or ranking.is_better(value, start):
        return "best"
    return f"no job is better than the {ranking.start.title}; the nearest"


def start_value(row: Row, key: str | None, start: Start | None) -> float | None:
    """What a job's start has for ``key``."""
    return row.value(start.key(key)) if key and start else None


def _importances(folder: Path) -> str:
    """A line with the importance of each parameter for the metric, if Optuna gives it."""
    if not (folder / STUDY_FILE).exists():
        return ""
    try:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.load_study(
                study_name="sweep", storage=f"sqlite:///{folder}/{STUDY_FILE}"
            )
            # The default, fANOVA, fails in the old optuna that Hydra's sweeper needs.
            evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception:  # too few trials, or a study of another kind: Optuna has no common class
        return ""
    return "\nimportance: " + ", ".join(f"{key} {share:.2f}" for key, share in shares.items())


def _swept_text(row: Row) -> str:
    """What tells the job from the others; the folder's name where the record is damaged."""
    if row.command is None:
        return one_line(row.folder)
    return " ".join(f"{key}={value}" for key, value in row.swept.items()) or one_line(row.folder)


def _write_csv(rows: list[Row], path: Path) -> None:
    numbers = {key: None for row in rows for key in row.results}
    swept = list(rows[0].swept)
    # results.json may repeat some of what was swept.
    columns = ["status", *swept, *(key for key in numbers if key not in swept), "error", "folder"]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            outcome = {"status": row.status, "error": row.error, "folder": one_line(row.folder)}
            writer.writerow({**row.results, **row.swept, **outcome})


def _write_picture(rows: list[Row], path: Path, metric: str, mode: str) -> None:
    from lora_mnist.sweep.figure import draw_sweep  # late: matplotlib

    points = [(row.swept, row.value(metric)) for row in rows]
    with atomic_write(path) as temporary:
        draw_sweep(temporary, points, metric, mode)


# --- the table -----------------------------------------------------------------------------------


def _table(
    rows: list[Row], metric: str | None, columns: Sequence[Column], start: Start | None
) -> str:
    from rich.console import Console

    text = StringIO()
    # Names come from users and files: [/b] and :x: in them are no markup.
    console = Console(
        file=text,
        width=columns_of_screen(),
        force_terminal=sys.stdout.isatty(),
        markup=False,
        emoji=False,
        highlight=False,
    )
    shown = list(shown_columns(rows, metric, columns))
    table = _rich_table(rows, shown, start, narrow=False)
    if (
        console.measure(table, options=console.options.update(max_width=1000)).maximum
        > console.width
    ):
        table = _rich_table(rows, shown, start, narrow=True)
    console.print(table)
    lines = text.getvalue().rstrip()
    if len(rows) > _SHOWN:
        lines += f"\n... {len(rows) - _SHOWN} more in summary.csv"
    return lines


def _rich_table(
    rows: list[Row], shown: Sequence[Column], start: Start | None, narrow: bool
) -> "Table":
    """The table; ``narrow`` breaks titles at their dots."""
    from rich.table import Table

    titles = ["", *rows[0].swept, *(column.title for column in shown)]
    table = Table(*(title.replace(".", ".\n") if narrow else title for title in titles))
    for rich_column in table.columns:
        rich_column.justify = "right"
        rich_column.overflow = "fold"
    begun = [_start_cell(rows, column, start) for column in shown]
    # What the start has needs no place before an arrow in every row.
    shown = [
        Column(column.title, column.value) if cell else column
        for column, cell in zip(shown, begun, strict=True)
    ]
    for place, row in enumerate(rows[:_SHOWN], start=1):
        if row.status == "finished":
            cells = [_cell(row, column) for column in shown]
            style = "bold" if place == 1 else ""
            table.add_row(str(place), *row.swept.values(), *cells, style=style)
        else:
            table.add_row("", *row.swept.values(), row.status, style="red")
    if start is not None and any(begun):
        table.add_section()
        table.add_row(start.title, *[""] * len(rows[0].swept), *begun)
    return table


def _start_cell(rows: list[Row], column: Column, start: Start | None) -> str:
    """What the jobs' start has, where all of them have the same."""
    values = {start_value(row, column.value, start) for row in rows if row.results}
    if start is None or len(values) != 1 or values == {None}:
        return ""
    row = next(row for row in rows if row.results)
    return _cell(row, Column(column.title, start.key(column.value)))


def shown_columns(
    rows: Sequence[Row], metric: str | None, columns: Sequence[Column]
) -> Iterator[Column]:
    """The metric's column and those that some job fills, with their titles filled in."""
    known = {key for row in rows for key in row.results}
    for column in ([Column(metric, metric)] if metric else []) + list(columns):
        if column.value in known:
            title = re.sub(r"\{([^{}]+)\}", lambda match: _shared(rows, match[1]), column.title)
            yield Column(title, column.value, column.before if column.before in known else None)


def _shared(rows: Sequence[Row], key: str) -> str:
    """The value of ``key`` that all jobs with results have, else the last part of its name."""
    values = {_value_text(row, key) for row in rows if row.results}
    value = values.pop() if len(values) == 1 else ""
    return value or key.rsplit(".", 1)[-1]


def _value_text(row: Row, key: str) -> str:
    value = row.results.get(key)
    if value is None:
        items = (v for k, v in row.results.items() if re.fullmatch(rf"{re.escape(key)}\.\d+", k))
        return ",".join(map(str, items))
    return str(value)


def _cell(row: Row, column: Column) -> str:
    keys = (column.before, column.value)
    values = [row.results[key] for key in keys if key in row.results]
    digits = 1 if column.value.startswith("seconds.") else 4
    return " -> ".join(f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in values)
