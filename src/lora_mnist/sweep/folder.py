"""Where a sweep and its jobs are: ``sweep.dir``, and ``sweep.subdir`` by a hash of the job."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.numbers import better_end, changes_numbers, flatten
from lora_mnist.disk.run_folder import latest
from lora_mnist.errors import UserError
from lora_mnist.project import key_of
from lora_mnist.sweep.records import JOB_FILE, is_finished, read_json

#: The commands so far (``commands``), the keys that all jobs of the last command share (``fixed``),
#: and ``entry``, ``metric`` and ``columns`` for the summary.
SWEEP_FILE = "sweep.json"
LOCK_FILE = ".lock"


def sweep_folder(new: str, resume: str | None) -> str:
    """Resolver for ``hydra.sweep.dir``: ``new``, or the sweep that ``sweep.resume`` names."""
    if resume is None:
        return new
    folder, where = Path(str(resume)).absolute(), ""
    if resume == "latest":
        job = latest(Path(new).parent, f"*/*/{JOB_FILE}")  # a sweep without jobs does not count
        folder, where = job.parents[1] if job else folder, f" in {Path(new).parent}"
    if not (folder / SWEEP_FILE).is_file():
        raise UserError(
            f"sweep.resume={resume}: expected the folder of a sweep, with {SWEEP_FILE} in it, or "
            f"latest; found none{where}"
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
    identity = {key: value for key, value in written.items() if changes_numbers(key)}
    return _digest([identity, inputs_hash(config)])


def inputs_hash(config: DictConfig) -> str:
    """Twelve digits that stand for the content of all files and folders in ``sweep.inputs``."""
    contents = {}
    inputs = OmegaConf.select(config, "sweep.inputs") or OmegaConf.create([])
    for key, value in flatten(OmegaConf.to_container(inputs, resolve=True)).items():
        path = Path(str(value))
        for file in [path, *path.rglob("[!.]*")]:  # a hidden file may be half-written
            if value and file.is_file():
                name = f"{key}/{file.relative_to(path)}"
                contents[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return _digest(contents)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def varied_overrides(hydra: HydraConf) -> list[str]:
    """The overrides of a sweep's job without those that all jobs of the command share."""
    fixed = read_json(Path(hydra.sweep.dir) / SWEEP_FILE).get("fixed", [])
    return [text for text in hydra.overrides.task if key_of(text) not in fixed]
