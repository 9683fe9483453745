"""The folder of a sweep: its files, and the names of its jobs' folders.

``sweep.json`` holds the commands that started and resumed the sweep. A job's folder is named by its
configuration; in it ``job.json`` says what the job is and, if it failed, why, and ``results.json``,
which is written last and atomically, says that it is finished.
"""

import hashlib
import json
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.summary import RESULTS_FILE

SWEEP_FILE = "sweep.json"
LOCK_FILE = ".lock"
#: Its presence keeps jobs from starting, in whatever process: one of them has failed for all.
STOP_FILE = ".stop"


def job_folder(*, _root_: DictConfig) -> str:
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of the configuration.

    The hash covers every key as it is written, but for ``hydra``, ``sweep`` and ``paths``, and the
    bytes of the base that the job starts from. So a folder belongs to exactly one configuration,
    wherever it lies and whenever it was made.
    """
    written: Any = OmegaConf.to_container(_root_, resolve=False)
    for key in ("hydra", "sweep", "paths"):
        written.pop(key, None)
    written["base_sha256"] = _base_sha256(_root_)
    text = json.dumps(written, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
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
    return None if sweeping and folder and Path(folder, RESULTS_FILE).exists() else ".hydra"


OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.hydra_subfolder", hydra_subfolder, replace=True)


def read_commands(folder: Path) -> list[str]:
    """The commands that have worked on the sweep in ``folder``."""
    with suppress(OSError, ValueError, KeyError):
        commands: list[str] = json.loads((folder / SWEEP_FILE).read_text())["commands"]
        return commands
    return []


def varied_overrides(hydra: HydraConf) -> list[str]:
    """The job's overrides without those that all jobs of the command share."""
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    return [o for o in hydra.overrides.task if key_of(o) not in fixed]


def key_of(override: str) -> str:
    """The key that an override of the command line sets."""
    return override.split("=", 1)[0].lstrip("+~")


def _base_sha256(cfg: DictConfig) -> str | None:
    """Digest of the base checkpoint's file, if the job starts from one."""
    if OmegaConf.select(cfg, "stage") == "pretrain":
        return None
    try:
        path = Path(OmegaConf.select(cfg, "base_ckpt"))
        stat = path.stat()
        return _file_sha256(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, TypeError):
        return None


@lru_cache(maxsize=64)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
