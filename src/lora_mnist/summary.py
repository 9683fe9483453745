"""The summary of a sweep: ``summary.csv``, ``summary.png`` and a table, from its jobs' files.

Reads ``job.json`` and ``results.json`` of every job's folder and nothing else, so that ten thousand
jobs are summarised in seconds; imports no torch, and matplotlib only to draw.
"""

import csv
import json
import math
import os
import shlex
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from lora_mnist.files import atomic_write

JOB_FILE = "job.json"
RESULTS_FILE = "results.json"
STUDY_FILE = "optuna.db"

#: Jobs that the table on the screen shows; summary.csv has them all.
_SHOWN = 20


@dataclass
class Row:
    """One job.

    Attributes:
        folder: name of the job's folder in the sweep's.
        status: finished, failed, or interrupted (started, but left neither result nor reason).
        error: why it failed.
        command: the how-manieth command on this sweep started it last.
        overrides: what the command line set, key to value, as written.
        varied: the keys among them that the command swept.
        results: results.json with nested keys joined by dots.
        swept: the values of all keys in which the sweep's jobs differ.
    """

    folder: str
    status: str
    error: str | None
    command: int
    overrides: dict[str, str]
    varied: list[str]
    results: dict[str, Any]
    swept: dict[str, str] = field(default_factory=dict)

    def value(self, metric: str | None) -> float | None:
        """The job's ``metric``, if it has that number."""
        value = self.results.get(metric) if metric else None
        number = isinstance(value, int | float) and not math.isnan(value)
        return float(value) if number else None  # type: ignore[arg-type]


@dataclass
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


def summarize(folder: Path, metric: str | None, mode: str, entry: str) -> Summary:
    """Write ``summary.csv`` and ``summary.png`` into the sweep's folder.

    Args:
        folder: the sweep's folder.
        metric: key of results.json by which to rank, nested keys joined by dots; ``None`` lists the
            jobs by what was swept.
        mode: "max" or "min": which end of ``metric`` is best.
        entry: script of the commands that the summary shows, such as train.py.

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
        numbers = sorted(k for k, v in finished[0].results.items() if _chooses(k, v))
        expected = f"one of {', '.join(numbers)}, or null" if numbers else "null (no validation)"
        complaint = f"sweep.metric={metric}: no job has it; expected {expected}"
    unwritten = None
    try:
        _write_csv(rows, folder / "summary.csv")
        if ranked and ranked[0].swept:
            _write_picture(rows, folder / "summary.png", str(metric), mode)
    except OSError as error:
        unwritten = f"the summary cannot be written ({error.strerror or error})"
    text = _table(rows, metric)
    if ranked:
        text += f"\nbest: {_command(entry, ranked[0])}{_importances(folder)}"
    for row in rows:
        if row.status != "finished":
            text += f"\n{row.status}: {_swept_text(row)}" + (f": {row.error}" if row.error else "")
    return Summary(rows, f"{text}\nsweep: {folder}", complaint, unwritten)


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


def _chooses(key: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and key.startswith("val.") and not key[-1].isdigit()


def _command(entry: str, row: Row) -> str:
    return shlex.join(["python", entry, *(f"{k}={v}" for k, v in row.overrides.items())])


def _swept_text(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in row.swept.items()) or row.folder


# --- reading -------------------------------------------------------------------------------------


def flatten(nested: Any) -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2, 3]}}`` as ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}``."""
    flat: dict[str, Any] = {}
    _flatten_into(flat, nested, "")
    return flat


def _flatten_into(flat: dict[str, Any], nested: Any, prefix: str) -> None:
    items: Iterable[tuple[Any, Any]]
    if isinstance(nested, dict):
        items = nested.items()
    elif isinstance(nested, list):
        items = enumerate(nested)
    else:
        flat[prefix] = nested
        return
    for key, value in items:
        _flatten_into(flat, value, f"{prefix}.{key}" if prefix else str(key))


def read_rows(folder: Path) -> list[Row]:
    """The jobs in a sweep's folder, in no particular order.

    A job that did not finish is left out where another with the same overrides did: it was
    repeated with what it lacked.
    """
    rows = [row for entry in os.scandir(folder) if (row := _read_row(Path(entry.path)))]
    done = {tuple(row.overrides.items()) for row in rows if row.status == "finished"}
    rows = [
        row for row in rows if row.status == "finished" or tuple(row.overrides.items()) not in done
    ]
    keys = _swept_keys(rows)
    for row in rows:
        row.swept = _settings(row, keys, folder)
    return rows


def _read_row(folder: Path) -> Row | None:
    try:
        job = json.loads((folder / JOB_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    results: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        results = json.loads((folder / RESULTS_FILE).read_text())
    status = "finished" if results else "failed" if job["error"] else "interrupted"
    return Row(
        folder=folder.name,
        status=status,
        error=None if results else job["error"],
        command=job["command"],
        overrides=dict(override.split("=", 1) for override in job["overrides"] if "=" in override),
        varied=job["varied"],
        results=flatten(results) | _errors_on_class(results),
    )


def _errors_on_class(results: dict[str, Any]) -> dict[str, int]:
    """Errors on the class or classes that the job repaired, per split."""
    digit = results.get("digit")
    if digit is None:
        return {}
    digits = digit if isinstance(digit, list) else [digit]
    return {
        f"{split}.errors_on_class": sum(results[split]["errors_per_class"][d] for d in digits)
        for split in ("val", "test_base", "test")
        if split in results
    }


def _swept_keys(rows: list[Row]) -> list[str]:
    """The keys that some command swept, then others in which the jobs differ."""
    keys = {key.lstrip("+~"): None for row in rows for key in row.varied}
    for key in {key: None for row in rows for key in row.overrides}:
        if len({row.overrides.get(key) for row in rows}) > 1:
            keys[key.lstrip("+~")] = None
    return list(keys)


def _settings(row: Row, keys: list[str], folder: Path) -> dict[str, str]:
    """The values of ``keys`` in a job, from its configuration where its command left them alone."""
    written = {key.lstrip("+~"): value for key, value in row.overrides.items()}
    config: Any = None
    if not written.keys() >= set(keys):
        # Cut off while it was written, the file may end anywhere.
        with suppress(OSError, yaml.YAMLError):
            config = _read_yaml(folder / row.folder / ".hydra" / "config.yaml")
    return {key: written[key] if key in written else _select(config, key) for key in keys}


def _select(config: Any, key: str) -> str:
    try:
        for part in key.split("."):
            config = config[part]
    except (KeyError, TypeError):
        return ""
    return "null" if config is None else str(config)


def _read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _ranked(rows: list[Row], metric: str | None, mode: str) -> list[Row]:
    """Best first; among equals, and without a metric, by what was swept."""
    sign = -1 if mode == "max" else 1

    def rank(row: Row) -> tuple[Any, ...]:
        value = row.value(metric)
        order = 0 if row.status == "finished" and (value is not None or not metric) else 1
        order = order if row.status == "finished" else 2
        return order, sign * (value or 0), [natural(v) for v in row.swept.values()], row.folder

    return sorted(rows, key=rank)


def natural(text: str) -> tuple[float, str]:
    """Sorts numbers by value and before everything else."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


# --- writing -------------------------------------------------------------------------------------


def _write_csv(rows: list[Row], path: Path) -> None:
    numbers = {key: None for row in rows for key in row.results}
    swept = list(rows[0].swept)
    # results.json repeats some of what was swept, such as digit and seed.
    columns = ["status", *swept, *(key for key in numbers if key not in swept), "error", "folder"]
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            outcome = {"status": row.status, "error": row.error, "folder": row.folder}
            writer.writerow({**row.results, **row.swept, **outcome})


def _write_picture(rows: list[Row], path: Path, metric: str, mode: str) -> None:
    from lora_mnist.figures import draw_sweep  # late: matplotlib

    points = [(row.swept, row.value(metric)) for row in rows]
    with atomic_write(path) as temporary:
        draw_sweep(temporary, points, metric, mode)


def _table(rows: list[Row], metric: str | None) -> str:
    from rich.console import Console
    from rich.table import Table

    columns = list(_columns(rows, metric))
    table = Table("", *rows[0].swept, *(title for title, _, _ in columns))
    for column in table.columns:
        column.justify = "right"
    for place, row in enumerate(rows[:_SHOWN], start=1):
        if row.status == "finished":
            cells = [_cell(row, before, after) for _, before, after in columns]
            table.add_row(str(place), *row.swept.values(), *cells)
        else:
            table.add_row("", *row.swept.values(), row.status)
    text = StringIO()
    Console(file=text, width=200).print(table)
    lines = text.getvalue().rstrip()
    if len(rows) > _SHOWN:
        lines += f"\n... {len(rows) - _SHOWN} more in summary.csv"
    return lines


def _columns(rows: list[Row], metric: str | None) -> Iterator[tuple[str, str | None, str]]:
    """Title, key before the repair and key after it of the table's columns."""
    known = {key for row in rows for key in row.results}
    digits = {str(row.results.get("digit", "")) for row in rows if row.results}
    digit = digits.pop() if len(digits) == 1 else ""
    errors = f"errors on {digit}" if digit else "errors on the class"
    candidates = [
        (metric, None, metric),
        (f"val {errors}", None, "val.errors_on_class"),
        ("test.accuracy", "test_base.accuracy", "test.accuracy"),
        (f"test {errors}", "test_base.errors_on_class", "test.errors_on_class"),
        ("seconds", None, "seconds.total"),
    ]
    for title, before, after in candidates:
        if title and after in known:
            yield title, before if before in known else None, str(after)


def _cell(row: Row, before: str | None, after: str) -> str:
    values = [row.results[key] for key in (before, after) if key in row.results]
    digits = 1 if after.startswith("seconds.") else 4
    return " -> ".join(f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in values)
