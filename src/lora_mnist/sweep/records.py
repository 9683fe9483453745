"""What a sweep's jobs have left: ``job.json`` and ``results.json``, written and read.

``job.json`` says what a job is and, if it failed, why. ``results.json`` is what it found. A file
that is torn or holds something else makes its job a damaged one, which has to run again. What is
read is short and can be printed, whoever wrote it.
"""

import json
import math
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_mnist.disk.files import atomic_write, read_bounded, read_json
from lora_mnist.errors import one_line

JOB_FILE = "job.json"
RESULTS_FILE = "results.json"

_MOST_BYTES = {JOB_FILE: 64 << 10, RESULTS_FILE: 2 << 20}
_MOST_YAML = 256 << 10
#: Characters of a name or value in a table.
_LONGEST = 200


class DamagedError(ValueError):
    """A job's file that does not hold what was written to it."""


@dataclass(frozen=True)
class Record:
    """What ``job.json`` says of a job.

    Attributes:
        number: the job's place in the command that started it last.
        command: that command's place among those that have worked on the sweep, from 1.
        overrides: the job's part of the command line, as written.
        varied: the keys among them that the command swept.
        error: why the job failed.
    """

    number: int
    command: int
    overrides: list[str]
    varied: list[str]
    error: str | None = None

    def write(self, folder: Path) -> None:
        """Leave the record in the job's folder.

        Raises:
            OSError: if it cannot be written.
        """
        with atomic_write(folder / JOB_FILE) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")


_RECORDED = {"number": int, "command": int, "overrides": list, "varied": list, "error": str | None}


def read_record(folder: Path) -> Record | None:
    """The record in a job's folder; ``None`` where there is none.

    Raises:
        DamagedError: if the file does not hold a record.
    """
    job = _read_object(folder / JOB_FILE)
    if job is None:
        return None
    for key, kind in _RECORDED.items():
        if key not in job or not isinstance(job[key], kind):
            raise DamagedError(f"{JOB_FILE} is damaged at {key}")
    if not all(isinstance(text, str) for text in (*job["overrides"], *job["varied"])):
        raise DamagedError(f"{JOB_FILE} is damaged")
    return Record(**{key: job[key] for key in _RECORDED})


def read_results(folder: Path) -> dict[str, Any] | None:
    """What ``results.json`` in a job's folder holds; ``None`` where there is none.

    Raises:
        DamagedError: if the file does not hold results.
    """
    return _read_object(folder / RESULTS_FILE)


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, _MOST_BYTES[path.name])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path.name} is damaged") from error
    if not isinstance(found, dict) or not found:
        raise DamagedError(f"{path.name} is damaged")
    return found


def is_finished(folder: Path) -> bool:
    """Whether the job in ``folder`` has its results and need not run again."""
    try:
        record = read_record(folder)
        return record is not None and record.error is None and read_results(folder) is not None
    except DamagedError:
        return False


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


def is_number(value: object) -> bool:
    """Whether ``value`` can rank jobs: a number, neither NaN nor infinite."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def natural(text: str) -> tuple[float, str]:
    """Sort key: numbers by value, before everything else."""
    try:
        number = float(text)
    except ValueError:
        return math.inf, text
    return (math.inf, text) if math.isnan(number) else (number, "")


# --- all jobs of a sweep -------------------------------------------------------------------------


@dataclass
class Row:
    """One job.

    Attributes:
        folder: name of the job's folder in the sweep's.
        status: ``finished``, ``failed``, ``damaged`` (one of its files is), or ``interrupted``
            (it started, and left neither result nor reason).
        error: why it failed, or what is damaged.
        command: the number of the command that started it last; ``None`` where it is not known.
        arguments: the job's part of the command line, as written.
        varied: the keys that the command swept.
        results: results.json with nested keys joined by dots.
        swept: the values of all keys in which the sweep's jobs differ.
    """

    folder: str
    status: str
    error: str | None = None
    command: int | None = None
    arguments: list[str] = field(default_factory=list)
    varied: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    swept: dict[str, str] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, str]:
        """What the command line set, key to value, as written."""
        return dict(argument.split("=", 1) for argument in self.arguments if "=" in argument)

    def value(self, metric: str | None) -> float | None:
        """The job's ``metric``, if it has that number."""
        value = self.results.get(metric) if metric else None
        return float(value) if is_number(value) else None  # type: ignore[arg-type]


def read_rows(folder: Path) -> list[Row]:
    """The jobs in a sweep's folder, in no particular order.

    A job that did not finish is left out where another with the same overrides did: it was
    repeated with what it lacked.

    Raises:
        OSError: if the folder cannot be read.
    """
    rows = [row for entry in os.scandir(folder) if (row := _read_row(Path(entry.path)))]
    done = {tuple(row.arguments) for row in rows if row.status == "finished"}
    rows = [
        row
        for row in rows
        if row.status == "finished" or row.command is None or tuple(row.arguments) not in done
    ]
    keys = _swept_keys(rows)
    for row in rows:
        settings = _settings(row, keys, folder)
        row.swept = {_shown(key): _shown(value) for key, value in settings.items()}
    return rows


def _shown(text: str) -> str:
    return one_line(text, _LONGEST)


def _read_row(folder: Path) -> Row | None:
    try:
        record = read_record(folder)
    except DamagedError as error:
        return Row(folder.name, "damaged", str(error))
    if record is None:
        return None
    row = Row(
        folder=folder.name,
        status="failed" if record.error is not None else "interrupted",
        error=None if record.error is None else one_line(record.error),
        command=record.command,
        arguments=record.overrides,
        varied=record.varied,
    )
    if record.error is None:
        try:
            results = read_results(folder)
        except DamagedError as error:
            row.status, row.error = "damaged", str(error)
        else:
            row.status = "interrupted" if results is None else "finished"
            found = flatten(results or {})
            row.results = {
                _shown(key): _shown(value) if isinstance(value, str) else value
                for key, value in found.items()
            }
    return row


def _swept_keys(rows: list[Row]) -> list[str]:
    """The keys that some command swept, then others in which the jobs differ."""
    keys = {key.lstrip("+~"): None for row in rows for key in row.varied}
    overrides = [row.overrides for row in rows if row.command is not None]
    for key in {key: None for set_ in overrides for key in set_}:
        if len({set_.get(key) for set_ in overrides}) > 1:
            keys[key.lstrip("+~")] = None
    return list(keys)


def _settings(row: Row, keys: list[str], folder: Path) -> dict[str, str]:
    """The values of ``keys`` in a job, from its configuration where its command left them alone."""
    written = {key.lstrip("+~"): value for key, value in row.overrides.items()}
    config: Any = None
    if not written.keys() >= set(keys):
        # The process may have been killed while it wrote the file.
        with suppress(OSError, ValueError):
            config = read_yaml(folder / row.folder / ".hydra" / "config.yaml")
    return {key: written[key] if key in written else _select(config, key) for key in keys}


def _select(config: Any, key: str) -> str:
    try:
        for part in key.split("."):
            config = config[part]
        return "null" if config is None else str(config)
    except (LookupError, TypeError, ValueError):  # ValueError: an integer too long to be shown
        return ""


def read_yaml(path: Path) -> Any:
    """What a YAML file of Hydra's holds.

    Raises:
        ValueError: if it is damaged, or holds more than Hydra writes.
        OSError: if it cannot be read.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_bounded(path, _MOST_YAML)
    try:
        # A few aliases of aliases would stand for billions of values. Hydra writes none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise ValueError(f"{path.name}: aliases")
        return yaml.load(text, loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged") from error
