"""The jobs of a sweep: the folder that each one has, what it leaves there, and how to read that.

A job leaves ``job.json``, which says what it is and how it ended, and ``results.json``.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.files import read_json
from lora_mnist.disk.numbers import affects_results, better_end, flatten
from lora_mnist.disk.run_paths import RESULTS_FILE, latest
from lora_mnist.errors import UserError
from lora_mnist.run import key_of

JOB_FILE = "job.json"
#: Has the keys that the last command of the sweep has swept, by which jobs are named.
SWEEP_FILE = "sweep.json"


def sweep_folder(new: str, resume: str | None) -> str:
    """Resolver for ``hydra.sweep.dir``: ``new``, or the sweep that ``sweep.resume`` names."""
    if resume is None:
        return new
    folder = Path(str(resume)).absolute()
    if resume == "latest":
        job = latest(Path(new).parent, f"*/*/{JOB_FILE}")  # a sweep without jobs does not count
        folder = job.parents[1] if job else folder
    if not (folder / SWEEP_FILE).is_file():
        raise UserError(
            f"sweep.resume={resume}: expected the folder of a sweep, with {SWEEP_FILE}, or latest"
        )
    return str(folder)


def job_folder(*, _root_: DictConfig) -> str:
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of what the job computes."""
    digest = job_hash(_root_)
    # An earlier command may have swept other keys: the hash counts, not the name before it.
    for folder in Path(_root_.hydra.sweep.dir).glob(f"*{digest}"):
        return folder.name
    swept = swept_overrides(Path(_root_.hydra.sweep.dir), _root_.hydra.overrides.task)
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(swept))[:100]
    return f"{name}-{digest}" if name else digest


# Cached, so that the folder is the same in every job.
OmegaConf.register_new_resolver(
    "lora_mnist.sweep_folder", sweep_folder, use_cache=True, replace=True
)
OmegaConf.register_new_resolver("lora_mnist.better_end", better_end, replace=True)
OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)


def job_hash(config: DictConfig) -> str:
    """Twelve hexadecimal digits that stand for what a job computes.

    They cover every key that may change a number, as it is written, interpolations not resolved,
    and the base that the job starts from.
    """
    written = flatten(OmegaConf.to_container(config, resolve=False), into=dict)
    settings = {key: value for key, value in written.items() if affects_results(key)}
    text = json.dumps([settings, base_sha256(config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_sha256(config: DictConfig) -> str | None:
    """The SHA-256 of the file that ``base_ckpt`` names, if the job starts from one.

    A pretraining writes that file.
    """
    path = Path(str(config.get("base_ckpt")))
    if config.get("stage") == "pretrain" or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def swept_overrides(sweep: Path, overrides: list[str]) -> list[str]:
    """Those of a job's overrides that differ between the jobs of the sweep's last command."""
    swept = read_json(sweep / SWEEP_FILE).get("swept", [])
    return [text for text in overrides if key_of(text) in swept]


@dataclass
class Job:
    """One job of a sweep; the first four fields are ``job.json``."""

    overrides: list[str]  # the job's command line
    base_sha256: str | None
    status: str = "started"  # started | finished | failed
    error: str | None = None  # why it failed, in a line
    folder: str = ""  # its name in the sweep's folder
    #: results.json of a finished job, nested keys joined by dots.
    results: dict[str, Any] = field(default_factory=dict)
    #: What was typed for each key in which the sweep's jobs differ; nothing: the configured value.
    swept: dict[str, str] = field(default_factory=dict)


def is_finished(folder: Path) -> bool:
    """Whether the job in ``folder`` came to its end and has its results."""
    status = read_json(folder / JOB_FILE).get("status")
    return status == "finished" and (folder / RESULTS_FILE).is_file()


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of the sweep in ``folder``."""
    jobs = []
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        job = Job(**read_json(path), folder=path.parent.name)
        if is_finished(path.parent):
            job.results = flatten(read_json(path.parent / RESULTS_FILE))
        jobs.append(job)
    values: dict[str, dict[str, str]] = {}  # as they were typed, by key and job
    for job in jobs:
        for text in job.overrides:
            if affects_results(key_of(text)):
                values.setdefault(key_of(text), {})[job.folder] = text.partition("=")[2]
    for key, typed in values.items():
        if len({typed.get(job.folder) for job in jobs}) > 1:
            for job in jobs:
                job.swept[key] = typed.get(job.folder, "")
    return jobs


def numeric_sort_key(text: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
