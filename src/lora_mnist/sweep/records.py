"""What a sweep's jobs have left: ``job.json`` and ``results.json``, written and read.

``job.json`` says what a job is and, if it failed, why. ``results.json`` is what it found. Where
either is damaged, the job has to run again.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import one_line
from lora_mnist.sweep.command import key_of

JOB_FILE = "job.json"
RESULTS_FILE = "results.json"


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        folder: name of the job's folder in the sweep's.
        status: ``finished``, ``failed``, ``damaged`` (one of its files is), or ``interrupted``
            (it started, and left neither result nor reason).
        error: why it failed, or what is damaged.
        command: which of the sweep's commands started it last, from 1; ``None``: not known.
        overrides: the job's part of the command line, as written.
        varied: the keys among them that the command swept.
        results: results.json with nested keys joined by dots.
        swept: the values of all keys in which the sweep's jobs differ.
    """

    folder: str
    status: str
    error: str | None = None
    command: int | None = None
    overrides: list[str] = field(default_factory=list)
    varied: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    swept: dict[str, str] = field(default_factory=dict)

    def value(self, key: str | None) -> float | None:
        """What results.json has for ``key``, if that is a finite number."""
        found = self.results.get(str(key))
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None
        return found if math.isfinite(found) else None

    def settings(self) -> dict[str, str]:
        """The job's overrides by key."""
        return {key_of(text): text.partition("=")[2] for text in self.overrides}

    def __str__(self) -> str:
        """What tells the job from the others."""
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or self.folder


def write_record(
    folder: Path,
    command: int,
    overrides: Sequence[str],
    varied: Sequence[str],
    error: str | None = None,
) -> None:
    """Leave ``job.json`` in a job's folder; see :class:`Job` for what it says."""
    record = {"command": command, "overrides": [*overrides], "varied": [*varied], "error": error}
    with atomic_write(folder / JOB_FILE) as path:
        path.write_text(json.dumps(record, indent=2) + "\n")


def read_results(folder: Path) -> dict[str, Any] | None:
    """What ``results.json`` in a job's folder holds; ``None`` where there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    return _read_object(folder / RESULTS_FILE)


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is damaged") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path.name} is damaged")
    return found


def is_finished(folder: Path) -> bool:
    """Whether the job in ``folder`` has its results and need not run again."""
    job = read_job(folder)
    return job is not None and job.status == "finished"


def read_job(folder: Path) -> Job | None:
    """The job in ``folder``, without :attr:`Job.swept`; ``None`` where there is none."""
    job = Job(folder.name, "damaged")
    try:
        record = _read_object(folder / JOB_FILE)
        if record is None:
            return None
        job.command, job.error = record["command"], record["error"]
        job.overrides, job.varied = record["overrides"], record["varied"]
        results = None if job.error else read_results(folder)
    except (ValueError, KeyError) as error:
        is_incomplete = isinstance(error, KeyError)
        job.error = f"{JOB_FILE} is damaged: no {error}" if is_incomplete else str(error)
        return job
    job.status = "failed" if job.error else "interrupted"
    if results is not None:
        job.status, job.results = "finished", flatten(results)
    return job


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of the sweep in ``folder``, by name.

    A job that did not finish is left out where another with the same overrides did: it was
    repeated with what it lacked.
    """
    jobs = [job for path in sorted(folder.iterdir()) if (job := read_job(path))]
    done = {tuple(job.overrides) for job in jobs if job.status == "finished"}
    jobs = [j for j in jobs if j.status == "finished" or tuple(j.overrides) not in done]
    keys = {key: None for job in jobs for key in job.varied}
    known = [job.settings() for job in jobs if job.command is not None]
    for key in {key: None for settings in known for key in settings}:
        if len({settings.get(key) for settings in known}) > 1:
            keys[key] = None
    for job in jobs:
        settings = job.settings()
        config: Any = OmegaConf.create()
        if not settings.keys() >= keys.keys():  # another command swept other keys
            with suppress(OSError, ValueError, yaml.YAMLError):  # killed while it was written
                config = OmegaConf.load(folder / job.folder / ".hydra" / "config.yaml")
        for key in keys:
            if key in settings:
                job.swept[key] = one_line(settings[key])
            else:
                value = OmegaConf.select(config, key, default="", throw_on_missing=False)
                job.swept[key] = "null" if value is None else one_line(value)
    return jobs


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2, 3]}}`` as ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}``."""
    if isinstance(nested, dict):
        items = list(nested.items())
    elif isinstance(nested, list):
        items = list(enumerate(nested))
    else:
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def natural(text: str) -> tuple[bool, float, str]:
    """Sort key: finite numbers by value, before everything else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (False, number, "") if math.isfinite(number) else (True, 0.0, text)
