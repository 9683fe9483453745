"""What a sweep's jobs leave: ``job.json`` (which one it is, why it failed), ``results.json``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lora_mnist.disk.numbers import changes_numbers, flatten
from lora_mnist.disk.run_folder import RESULTS_FILE
from lora_mnist.errors import one_line
from lora_mnist.project import key_of

JOB_FILE = "job.json"


@dataclass
class Job:
    """One job of a sweep."""

    folder: str  # its name in the sweep's folder
    command: int  # the number, from 1, of the command in sweep.json that started it last
    overrides: list[str]  # the job's part of the command line
    error: str | None = None
    inputs: str = ""  # stands for the content of the files that it started from
    #: results.json, nested keys joined by dots; empty unless the job has finished. A job that does
    #: not meet ``require`` has results and an error.
    results: dict[str, Any] = field(default_factory=dict)
    #: The job's values of all keys in which the sweep's jobs differ.
    swept: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """``finished``, ``failed``, or ``interrupted``: with neither results nor error."""
        return "failed" if self.error else "finished" if self.results else "interrupted"

    def settings(self) -> dict[str, str]:
        """The job's overrides by key."""
        return {key_of(text): text.partition("=")[2] for text in self.overrides}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def read_job(folder: Path) -> Job | None:
    """The job in ``folder``, without :attr:`Job.swept`; ``None`` where there is none."""
    record = read_json(folder / JOB_FILE)
    if not record:
        return None
    has_results = record.pop("has_results", False)
    job = Job(folder.name, **record)
    if not job.error or has_results:
        job.results = flatten(read_json(folder / RESULTS_FILE))
    return job


def is_finished(folder: Path) -> bool:
    """Whether the job in ``folder`` has its results and need not run again."""
    job = read_job(folder)
    return job is not None and bool(job.results)


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of the sweep in ``folder``, by name.

    An unfinished job is left out if another with the same overrides finished. If an input such as
    the base changed between jobs with equal settings, ``inputs`` in :attr:`Job.swept` tells them
    apart.
    """
    jobs = [job for path in sorted(folder.iterdir()) if (job := read_job(path))]
    done = [job.overrides for job in jobs if job.status == "finished"]
    jobs = [job for job in jobs if job.status == "finished" or job.overrides not in done]
    keys = {key: None for job in jobs for key in job.settings() if changes_numbers(key)}
    keys = {key: None for key in keys if len({job.settings().get(key) for job in jobs}) > 1}
    for job in jobs:
        settings, config = job.settings(), folder / job.folder / ".hydra" / "config.yaml"
        for key in keys:
            value: Any = settings.get(key, "")
            if key not in settings and config.is_file():  # another command has swept it
                value = OmegaConf.select(OmegaConf.load(config), key, default="")
            job.swept[key] = "null" if value is None else one_line(value)
    # Seeds are repetitions of one setting only if they start from the same files.
    pairs = {(str({**job.swept, "seed": ""}), job.inputs) for job in jobs}
    if len(pairs) > len({settings for settings, _ in pairs}):
        for job in jobs:
            job.swept["inputs"] = job.inputs
    return jobs


def natural(text: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
