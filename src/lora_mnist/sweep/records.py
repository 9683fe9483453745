"""What a sweep's jobs leave: ``job.json`` (which one it is, why it failed), ``results.json``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lora_mnist.disk.numbers import RESULTS_FILE, flatten
from lora_mnist.errors import one_line
from lora_mnist.sweep.command import key_of

JOB_FILE = "job.json"


@dataclass
class Job:
    """One job of a sweep."""

    folder: str  # its name in the sweep's
    command: int  # which of the sweep's commands started it last, from 1
    overrides: list[str]  # the job's part of the command line, as written
    error: str | None = None
    inputs: str = ""  # stands for the content of the files that it started from
    #: results.json with nested keys joined by dots; empty until the job has finished. A job that
    #: failed because of ``require`` has them, too.
    results: dict[str, Any] = field(default_factory=dict)
    #: The values of all keys in which the sweep's jobs differ.
    swept: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """``finished``, ``failed``, or ``interrupted``: it left neither result nor reason."""
        return "failed" if self.error else "finished" if self.results else "interrupted"

    def settings(self) -> dict[str, str]:
        """The job's overrides by key."""
        return {key_of(text): text.partition("=")[2] for text in self.overrides}


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def read_job(folder: Path) -> Job | None:
    """The job in ``folder``, without :attr:`Job.swept`; ``None`` where there is none."""
    record = read_json(folder / JOB_FILE)
    if not record:
        return None
    job = Job(
        folder.name, record["command"], record["overrides"], record["error"], record["inputs"]
    )
    if not job.error or record.get("has_results"):
        job.results = flatten(read_json(folder / RESULTS_FILE))
    return job


def is_finished(folder: Path) -> bool:
    """Whether the job in ``folder`` has its results and need not run again."""
    job = read_job(folder)
    return job is not None and bool(job.results)


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of the sweep in ``folder``, by name.

    A job that did not finish is left out where another with the same overrides did: it was
    repeated with what it lacked. Where files changed that jobs start from, such as the base, and
    the settings did not, ``inputs`` tells the jobs before from those after.
    """
    jobs = [job for path in sorted(folder.iterdir()) if (job := read_job(path))]
    done = [job.overrides for job in jobs if job.status == "finished"]
    jobs = [job for job in jobs if job.status == "finished" or job.overrides not in done]
    settings = [job.settings() for job in jobs]
    keys = {key: None for own in settings for key in own}
    keys = {key: None for key in keys if len({own.get(key) for own in settings}) > 1}
    for job, own in zip(jobs, settings, strict=True):
        written, config = folder / job.folder / ".hydra" / "config.yaml", None
        for key in keys:
            value: Any = own.get(key, "")
            if key not in own and written.is_file():  # another command has swept it
                config = config or OmegaConf.load(written)
                value = OmegaConf.select(config, key, default="")
            job.swept[key] = "null" if value is None else one_line(value)
    inputs: dict[object, set[str]] = {}
    for job in jobs:  # their seeds are repetitions of one setting only on the same inputs
        setting = tuple(value for key, value in job.swept.items() if key != "seed")
        inputs.setdefault(setting, set()).add(job.inputs)
    if any(len(each) > 1 for each in inputs.values()):
        for job in jobs:
            job.swept["inputs"] = job.inputs
    return jobs


def natural(text: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
