"""One job of a sweep, in whatever process it runs: skipped if finished, recorded, failure and all.

Imports no torch before the job does: the process that skips finished jobs needs none.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError, described, full_disk, is_full_error_wanted
from lora_mnist.sweep import interrupt
from lora_mnist.sweep.folder import (
    LOCK_FILE,
    STOP_FILE,
    job_hash,
    key_of,
    read_commands,
    varied_overrides,
)
from lora_mnist.sweep.records import (
    JOB_FILE,
    RESULTS_FILE,
    Record,
    flatten,
    is_finished,
    is_number,
    read_results,
)
from lora_mnist.sweep.screen import say

log = logging.getLogger(__name__)

#: With less space than this a failure is put down to the full disk (bytes).
_DISK_FULL = 1 << 20

#: Groups that decide how a sweep goes, and nothing about what a job computes.
_HOW_NOT_WHAT = ("sweep", "launcher")


@dataclass
class Job:
    """What :func:`swept_job` tells the entry, and what it tells the sweeper.

    Attributes:
        due: whether the job has to run: it is not finished, and the sweep was not stopped.
        objective: the value of ``sweep.metric``, for sweepers that search.
    """

    due: bool = True
    objective: float | None = None


@contextmanager
def swept_job(cfg: DictConfig) -> Iterator[Job]:
    """Around one job: skip it if it is finished, keep its record, and survive its failure.

    A single run passes through untouched, and so does a job without ``sweep`` in its configuration.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or OmegaConf.select(cfg, "sweep") is None:
        yield Job()
        return
    if interrupt.is_handled():
        interrupt.check()
    else:
        interrupt.leave_to_parent()
    _log_to_file_only(hydra)
    folder = Path(hydra.runtime.output_dir)
    label = _label(hydra.job.num, varied_overrides(hydra))
    if (folder.parent / STOP_FILE).exists():
        yield Job(due=False)
        return
    job, started = Job(), time.perf_counter()
    with ExitStack() as stack:
        try:
            if stack.enter_context(_only_writer(folder)):
                say(f"{label}: finished before")
                job = Job(due=False, objective=_objective(cfg, folder))
            else:
                _open_record(hydra, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
            job = Job(due=False)
        if not job.due:
            yield job
            return
        computes = job_hash(cfg)
        try:
            yield job
            if job_hash(cfg) != computes:
                inputs = OmegaConf.to_container(cfg.sweep.inputs, resolve=True)
                raise UserError(
                    f"sweep.inputs={inputs}: changed while the job ran; expected the same files "
                    "throughout, so it has to run again"
                )
            job.objective = _objective(cfg, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
        else:
            value = "" if job.objective is None else f"{cfg.sweep.metric} {job.objective:.6g}, "
            say(f"{label}: {value}{time.perf_counter() - started:.1f} s")


def _label(number: int, varied: Iterable[str]) -> str:
    return f"#{number} {' '.join(varied)}".rstrip()


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Hold the folder of an unfinished job; yields whether it is finished."""
    if is_finished(folder):
        yield True
    else:
        # A worker can outlive the sweep that started it. Once it is done, its result counts.
        with FileLock(folder / LOCK_FILE):
            yield is_finished(folder)


def _open_record(hydra: HydraConf, folder: Path) -> None:
    """Say in the job's folder what it is, and clear away what an earlier attempt left half-done."""
    kept = {".hydra", LOCK_FILE, JOB_FILE, f"{hydra.job.name}.log"}
    started = any((folder / name).exists() for name in (JOB_FILE, RESULTS_FILE))
    for path in folder.iterdir() if started else ():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    _write_record(hydra, folder, error=None)


def _write_record(hydra: HydraConf, folder: Path, error: str | None) -> None:
    record = Record(
        number=hydra.job.num,
        command=len(read_commands(folder.parent)),
        overrides=[o for o in hydra.overrides.task if _group_of(o) not in _HOW_NOT_WHAT],
        varied=[key_of(override) for override in varied_overrides(hydra)],
        error=error,
    )
    record.write(folder)


def _group_of(override: str) -> str:
    """``sweep`` of ``sweep=optuna`` and of ``sweep.metric=null``."""
    return key_of(override).split(".", 1)[0]


def _objective(cfg: DictConfig, folder: Path) -> float | None:
    metric = OmegaConf.select(cfg, "sweep.metric")
    value = flatten(read_results(folder)).get(metric)
    return value if is_number(value) else None


def _fail(cfg: DictConfig, hydra: HydraConf, folder: Path, label: str, error: Exception) -> None:
    """Tell at once, and keep for the summary, that a job failed; the next ones go on."""
    interrupt.check()
    ours = isinstance(error, UserError)
    reason = described(error)
    log.error("%s", reason, exc_info=None if ours and not is_full_error_wanted() else error)
    with suppress(OSError):
        _write_record(hydra, folder, reason)
    where = "" if ours else f" (traceback in {folder / hydra.job.name}.log)"
    say(f"{label} failed: {reason}{where}", to_stderr=True)
    no_space = full_disk(error) or shutil.disk_usage(folder).free < _DISK_FULL
    if no_space or OmegaConf.select(cfg, "sweep.fail_fast"):
        with suppress(OSError):
            (folder.parent / STOP_FILE).touch()
        if interrupt.is_handled():
            raise SystemExit(1)


def _log_to_file_only(hydra: HydraConf) -> None:
    """In a sweep the screen gets one line a job; tables and messages go to the job's log."""
    logging.raiseExceptions = False  # the job itself will say that the disk is full
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
