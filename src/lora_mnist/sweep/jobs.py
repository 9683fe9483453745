"""The jobs of a sweep: the folder that each one has, what it leaves there, and how to read that.

A job leaves ``job.json`` (which one it is, why it failed) and ``results.json``.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.files import read_json
from lora_mnist.disk.numbers import affects_results, better_end, flatten
from lora_mnist.disk.run_paths import RESULTS_FILE, latest
from lora_mnist.errors import UserError, one_line
from lora_mnist.run import key_of

JOB_FILE = "job.json"
#: The commands so far (``commands``), the keys that all jobs of the last command share (``fixed``),
#: and ``entry``, ``metric`` and ``columns`` for the summary.
SWEEP_FILE = "sweep.json"
LOCK_FILE = ".lock"


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
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of the configuration."""
    digest = job_hash(_root_)
    # An earlier command may have swept other keys: the configuration counts, not the name.
    for folder in Path(_root_.hydra.sweep.dir).glob(f"*{digest}"):
        return folder.name
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(varied_overrides(_root_.hydra)))[:100]
    return f"{name}-{digest}" if name else digest


def hydra_subfolder(resume: str | None, *, _root_: DictConfig) -> str | None:
    """Resolver for ``hydra.output_subdir``: none for a job that has finished or a resumed run."""
    if _root_.hydra.mode != RunMode.MULTIRUN:
        return None if resume else ".hydra"
    folder = OmegaConf.select(_root_, "hydra.runtime.output_dir", default=None)
    return None if folder and is_finished(Path(folder)) else ".hydra"


# Cached, so that the folder is the same in every job.
OmegaConf.register_new_resolver(
    "lora_mnist.sweep_folder", sweep_folder, use_cache=True, replace=True
)
OmegaConf.register_new_resolver("lora_mnist.better_end", better_end, replace=True)
OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.hydra_subfolder", hydra_subfolder, replace=True)


def job_hash(config: DictConfig) -> str:
    """Twelve hexadecimal digits that stand for what a job computes.

    They cover every key that may change a number, as it is written (interpolations are not
    resolved), and :func:`inputs_hash`.
    """
    written = flatten(OmegaConf.to_container(config, resolve=False), into=dict)
    identity = {key: value for key, value in written.items() if affects_results(key)}
    return _digest([identity, inputs_hash(config)])


def inputs_hash(config: DictConfig) -> str:
    """Twelve digits that stand for the content of ``sweep.inputs``.

    Pictures below ``data.data_dir`` count by their paths and sizes: there may be very many.
    """
    contents: dict[str, Any] = {}
    data_dir = OmegaConf.select(config, "data.data_dir")
    root = Path(str(data_dir)).expanduser()
    for file in root.rglob("[!.]*") if data_dir else ():
        kind, _ = guess_type(file.name, strict=False)
        if kind and kind.startswith("image/"):
            contents[f"images/{file.relative_to(root)}"] = file.stat().st_size
    inputs = OmegaConf.select(config, "sweep.inputs") or OmegaConf.create([])
    files = flatten(OmegaConf.to_container(inputs, resolve=True))
    for key, value in files.items():
        path = Path(str(value)).expanduser()
        for file in [path, *path.rglob("[!.]*")]:  # a hidden file may be half-written
            if value and file.is_file():
                name = f"{key}/{file.relative_to(path)}"
                contents[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return _digest(contents)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def varied_overrides(hydra: HydraConf) -> list[str]:
    """The overrides of a sweep's job without those that all jobs of the command share.

    :func:`.session.open_sweep` has written these into sweep.json.
    """
    fixed = read_json(Path(hydra.sweep.dir) / SWEEP_FILE).get("fixed", [])
    return [text for text in hydra.overrides.task if key_of(text) not in fixed]


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
    keys = {key: None for job in jobs for key in job.settings() if affects_results(key)}
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


def numeric_sort_key(text: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
