"""The folder of a sweep: its files, and the names of its jobs' folders.

``sweep.json`` holds the commands that started and resumed the sweep. Each job has a folder, named
by what was swept and by a hash of the job's configuration (:func:`job_hash`).
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.errors import UserError
from lora_mnist.sweep.command import override
from lora_mnist.sweep.records import is_finished

SWEEP_FILE = "sweep.json"
_MOST_BYTES = 4 << 20
LOCK_FILE = ".lock"
#: While it exists no job starts, in whatever process: one of them has failed for all.
STOP_FILE = ".stop"

#: Keys of the configuration that say how and where jobs run, and nothing about what they compute.
_HOW_NOT_WHAT = ("hydra", "sweep", "paths")


def job_folder(*, _root_: DictConfig) -> str:
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of the configuration.

    A folder belongs to exactly one configuration, wherever it lies and whenever it was made.
    """
    digest = job_hash(_root_)
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(varied_overrides(_root_.hydra)))[:100]
    name = f"{name}-{digest}" if name else digest
    sweep = Path(_root_.hydra.sweep.dir)
    if len(read_commands(sweep)) > 1 and not (sweep / name).exists():
        # An earlier command may have swept other keys: the configuration counts, not the name.
        for folder in (*sweep.glob(f"*-{digest}"), *sweep.glob(digest)):
            return folder.name
    return name


def hydra_subfolder(*, _root_: DictConfig) -> str | None:
    """Resolver for ``hydra.output_subdir``: Hydra writes nothing into a finished job's folder."""
    folder = OmegaConf.select(_root_, "hydra.runtime.output_dir", default=None)
    sweeping = OmegaConf.select(_root_, "hydra.mode") == RunMode.MULTIRUN
    return None if sweeping and folder and is_finished(Path(folder)) else ".hydra"


OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.hydra_subfolder", hydra_subfolder, replace=True)


# --- what identifies a job -----------------------------------------------------------------------


def job_hash(config: DictConfig) -> str:
    """Twelve hexadecimal digits that stand for what a job computes.

    They cover every key of the configuration as it is written (interpolations are not resolved),
    except ``hydra``, ``sweep`` and ``paths``, and the content of the files that ``sweep.inputs``
    names: a list whose entries are ``null``, a file, a folder, or lists and mappings that have
    paths among other values. A path where nothing is counts as its text. Relative paths start in
    the folder where the command was given.
    """
    written: Any = OmegaConf.to_container(config, resolve=False)
    start = OmegaConf.select(config, "hydra.runtime.cwd", default=None) or "."
    identity = {
        "config": {key: value for key, value in written.items() if key not in _HOW_NOT_WHAT},
        "inputs": _contents(_inputs(config), Path(start)),
    }
    text = json.dumps(_plain(identity), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _inputs(config: DictConfig) -> Any:
    inputs = OmegaConf.select(config, "sweep.inputs", default=None)
    if not OmegaConf.is_config(inputs):
        return inputs
    try:
        return OmegaConf.to_container(inputs, resolve=True)
    except OmegaConfBaseException:  # the job itself will say what is wrong with its value
        return OmegaConf.to_container(inputs, resolve=False)


def _plain(value: Any) -> Any:
    """``value`` with keys that sort, and nothing that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _contents(value: Any, start: Path) -> Any:
    """``value`` with a digest of its content in the place of every path in it that exists."""
    if isinstance(value, Mapping):
        return {str(key): _contents(item, start) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_contents(item, start) for item in value]
    if isinstance(value, str) and value:
        with suppress(OSError, ValueError):  # not readable, or too long for a path: text
            return _path_digest(start / value) or value
    return value


def _path_digest(path: Path) -> str | dict[str, str] | None:
    if path.is_file():
        return _file_digest(path)
    if path.is_dir():
        # A hidden one may be half of a file that somebody is writing.
        files = (f for f in path.rglob("[!.]*") if f.is_file())
        return {file.relative_to(path).as_posix(): _file_digest(file) for file in files}
    return None


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _file_sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file that was last changed at ``mtime_ns``: the same for all jobs of a sweep."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- the sweep's folder --------------------------------------------------------------------------


def forget_command(folder: Path) -> None:
    """Take back the last command, which Hydra refused before any job started.

    A sweep of which nothing else is known goes away: ``sweep.resume=latest`` must not find it.
    """
    with suppress(OSError):
        if commands := read_commands(folder)[:-1]:
            write_commands(folder, commands)
            return
        for name in (SWEEP_FILE, LOCK_FILE, "multirun.yaml"):  # the last is Hydra's
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def resumed_folder(config: DictConfig) -> Path | None:
    """The folder of the sweep that ``sweep.resume`` names, if it names one.

    Raises:
        UserError: if there is no such sweep.
    """
    resume = OmegaConf.select(config, "sweep.resume")
    if resume is None:
        return None
    if resume == "latest":
        parent = Path(config.hydra.sweep.dir).absolute().parent
        # The folders are named by the time.
        found = sorted(path.parent for path in parent.glob(f"*/{SWEEP_FILE}"))
        if not found:
            raise UserError(f"sweep.resume=latest: expected a sweep in {parent}, found none")
        return found[-1]
    folder = Path(str(resume)).absolute()
    if not (folder / SWEEP_FILE).is_file():
        raise UserError(
            f"sweep.resume={resume}: no sweep; expected a folder with {SWEEP_FILE}, or latest"
        )
    return folder


def claim(folder: Path, resumed: bool) -> FileLock:
    """Make a sweep's folder this process's own until it ends, however it ends.

    Raises:
        UserError: if another sweep is in it, now or before.
        OSError: if it cannot be written.
    """
    key = "sweep.resume" if resumed else "hydra.sweep.dir"
    make_or_exit(key, folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{key}={folder}: another sweep is running there; expected one at a time"
        ) from error
    if not resumed and (folder / SWEEP_FILE).exists():
        raise UserError(
            f"hydra.sweep.dir={folder}: holds another sweep; "
            f"expected a new folder, or {override('sweep.resume', folder)}"
        )
    (folder / STOP_FILE).unlink(missing_ok=True)
    return lock


def make_or_exit(key: str, folder: Path, new_subfolder: str = "") -> None:
    """Make ``folder`` and a subfolder in it, or end the process with one line and code 2.

    Args:
        key: the configuration's key that names ``folder``, for the message.
        folder: may exist, but must be writable.
        new_subfolder: must not exist; it marks ``folder`` as taken.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if new_subfolder:
            # mkdir is atomic: of two runs that start at once in one folder, one ends here.
            (folder / new_subfolder).mkdir()
        elif not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        taken = new_subfolder and (folder / new_subfolder).is_dir()
        reason = "holds another run" if taken else f"cannot be written ({error.strerror})"
        print(f"{key}={folder}: {reason}; expected a new folder", file=sys.stderr)
        raise SystemExit(2) from error


def read_commands(folder: Path) -> list[str]:
    """The commands that have worked on the sweep in ``folder``."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        commands = read_json(folder / SWEEP_FILE, _MOST_BYTES)["commands"]
        return [str(command) for command in commands] if isinstance(commands, list) else []
    return []


def write_commands(folder: Path, commands: Sequence[str]) -> None:
    """Leave the commands that have worked on a sweep in its folder.

    Raises:
        OSError: if they cannot be written.
    """
    with atomic_write(folder / SWEEP_FILE) as path:
        path.write_text(json.dumps({"commands": list(commands)}, indent=2) + "\n")


def varied_overrides(hydra: HydraConf) -> list[str]:
    """The job's overrides without those that all jobs of the command share."""
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    return [o for o in hydra.overrides.task if key_of(o) not in fixed]


def key_of(override: str) -> str:
    """The key that an override of the command line sets."""
    return override.split("=", 1)[0].lstrip("+~")
