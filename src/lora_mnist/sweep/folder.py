"""The folder of a sweep: who owns it, what ``sweep.json`` says, how its jobs' folders are named."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.latest import latest
from lora_mnist.errors import UserError
from lora_mnist.sweep.command import key_of, override
from lora_mnist.sweep.records import JOB_FILE, is_finished

SWEEP_FILE = "sweep.json"
LOCK_FILE = ".lock"
#: While it exists no job starts, in whatever process: one of them has failed for all.
STOP_FILE = ".stop"

#: Keys of the configuration that say how and where jobs run, and nothing about what they compute.
_HOW_NOT_WHAT = ("hydra", "sweep", "paths")


def sweep_folder(new: str, resume: str | None) -> str:
    """Resolver for ``hydra.sweep.dir``: ``new``, or the sweep that ``sweep.resume`` names.

    Raises:
        UserError: if there is no such sweep.
    """
    if resume is None:
        return new
    if resume == "latest":
        found = latest(Path(new).parent, f"*/*/{JOB_FILE}")  # one that came to a job
        if found is None:
            raise UserError(
                f"sweep.resume=latest: expected a sweep in {Path(new).parent}, found none"
            )
        return str(found.parents[1])
    folder = Path(str(resume)).absolute()
    if not (folder / SWEEP_FILE).is_file():
        raise UserError(
            f"sweep.resume={resume}: no sweep; expected a folder with {SWEEP_FILE}, or latest"
        )
    return str(folder)


def job_folder(*, _root_: DictConfig) -> str:
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of the configuration.

    A folder belongs to exactly one configuration, wherever it lies and whenever it was made.
    """
    digest = job_hash(_root_)
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(varied_overrides(_root_.hydra)))[:100]
    name = f"{name}-{digest}" if name else digest
    sweep = Path(_root_.hydra.sweep.dir)
    if not (sweep / name).exists() and len(read_sweep(sweep).get("commands", [])) > 1:
        # An earlier command may have swept other keys: the configuration counts, not the name.
        for folder in sweep.glob(f"*{digest}"):
            return folder.name
    return name


def hydra_subfolder(resume: str | None, *, _root_: DictConfig) -> str | None:
    """Resolver for ``hydra.output_subdir``: nothing is written for what is finished, or goes on."""
    if resume or OmegaConf.select(_root_, "hydra.mode") != RunMode.MULTIRUN:
        return None if resume else ".hydra"
    folder = OmegaConf.select(_root_, "hydra.runtime.output_dir", default=None)
    return None if folder and is_finished(Path(folder)) else ".hydra"


# The folder must be the same whenever it is asked for, and in every job.
OmegaConf.register_new_resolver(
    "lora_mnist.sweep_folder", sweep_folder, use_cache=True, replace=True
)
OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.hydra_subfolder", hydra_subfolder, replace=True)


# --- what identifies a job -----------------------------------------------------------------------


def job_hash(config: DictConfig) -> str:
    """Twelve hexadecimal digits that stand for what a job computes.

    They cover every key of the configuration as it is written (interpolations are not resolved),
    except ``hydra``, ``sweep`` and ``paths``, and the content of the files that ``sweep.inputs``
    names: a list whose entries are ``null``, a file, a folder, or lists and mappings of such. A
    path where nothing is counts as its text. Relative paths start in the folder where the command
    was given.
    """
    written: Any = OmegaConf.to_container(config, resolve=False)
    named, inputs = OmegaConf.select(config, "sweep.inputs") or OmegaConf.create([]), None
    with suppress(OmegaConfBaseException):  # else the job itself will say what is wrong
        inputs = OmegaConf.to_container(named, resolve=True)
    start = Path(HydraConfig.get().runtime.cwd if HydraConfig.initialized() else "")
    identity = {
        "config": {key: value for key, value in written.items() if key not in _HOW_NOT_WHAT},
        "inputs": _contents(inputs, start),
    }
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _contents(value: Any, start: Path) -> Any:
    """``value`` with a digest of its content in the place of every path in it that exists."""
    if isinstance(value, Mapping):
        return {str(key): _contents(item, start) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_contents(item, start) for item in value]
    if not isinstance(value, str) or not value:
        return value
    path = start / value
    with suppress(OSError, ValueError):  # too long for a path: text
        # A hidden one may be half of a file that somebody is writing.
        files = [path] if path.is_file() else [f for f in path.rglob("[!.]*") if f.is_file()]
        found = {}
        for file in files:
            stat = file.stat()
            name = file.relative_to(path).as_posix()
            found[name] = _sha256(file, stat.st_mtime_ns, stat.st_size)
        return found or value
    return value


@lru_cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file that was last changed at ``mtime_ns``: a base is read once a sweep."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the sweep's folder --------------------------------------------------------------------------


def claim(folder: Path, resumed: bool) -> FileLock:
    """Make a sweep's folder this process's own until it ends, however it ends.

    Raises:
        UserError: if another sweep is in it, now or before, or it cannot be written.
    """
    key = "sweep.resume" if resumed else "hydra.sweep.dir"
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{key}={folder}: another sweep is running there; expected one at a time"
        ) from error
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror})") from error
    if not resumed and (folder / SWEEP_FILE).exists():
        raise UserError(
            f"hydra.sweep.dir={folder}: holds another sweep; "
            f"expected a new folder, or {override('sweep.resume', folder)}"
        )
    (folder / STOP_FILE).unlink(missing_ok=True)
    return lock


def read_sweep(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` says of the sweep in ``folder``; nothing where there is none.

    ``commands`` have worked on the sweep; the jobs of the last one share the keys in ``fixed``.
    ``entry``, ``metric``, ``mode``, ``start`` and ``columns`` are for the summary; see
    ``configs/sweep/default.yaml``.
    """
    try:
        found = json.loads((folder / SWEEP_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_sweep(folder: Path, sweep: Mapping[str, Any]) -> None:
    """Leave ``sweep.json`` in a sweep's folder."""
    with atomic_write(folder / SWEEP_FILE) as path:
        path.write_text(json.dumps(sweep, indent=2) + "\n")


def varied_overrides(hydra: HydraConf) -> list[str]:
    """The overrides of a job of a sweep without those that all jobs of the command share."""
    fixed = read_sweep(Path(hydra.sweep.dir)).get("fixed")
    if fixed is None:
        return []
    return [o for o in hydra.overrides.task if key_of(o) not in fixed]
