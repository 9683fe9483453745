"""One job of a sweep, in whatever process it runs: skipped if finished, recorded, its failure kept.

Imports no torch before the job does: the process that skips finished jobs needs none.
"""

import json
import logging
import shutil
import sys
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

from lora_mnist import interrupt
from lora_mnist.errors import UserError, described, full_disk, is_full_error_wanted
from lora_mnist.files import atomic_write
from lora_mnist.summary import JOB_FILE, RESULTS_FILE, flatten
from lora_mnist.sweep_folder import LOCK_FILE, STOP_FILE, key_of, read_commands, varied_overrides

log = logging.getLogger(__name__)

#: Less than this and a failure is put down to the full disk (bytes).
_DISK_FULL = 1 << 20


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

    A single run passes through untouched.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        yield Job()
        return
    if interrupt.is_handled():
        interrupt.check()
    else:
        interrupt.leave_to_parent()
    _log_to_file_only()
    folder = Path(hydra.runtime.output_dir)
    label = _label(hydra.job.num, varied_overrides(hydra))
    if (folder.parent / STOP_FILE).exists():
        yield Job(due=False)
        return
    job, started = Job(), time.perf_counter()
    with ExitStack() as stack:
        try:
            if stack.enter_context(_only_writer(folder)):
                print(f"{label}: finished before", flush=True)
                job = Job(due=False, objective=_objective(cfg, folder))
            else:
                _open_record(cfg, hydra, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
            job = Job(due=False)
        if not job.due:
            yield job
            return
        try:
            yield job
            job.objective = _objective(cfg, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
        else:
            value = "" if job.objective is None else f"{cfg.sweep.metric} {job.objective:.6g}, "
            print(f"{label}: {value}{time.perf_counter() - started:.1f} s", flush=True)


def _label(number: int, varied: Iterable[str]) -> str:
    return f"#{number} {' '.join(varied)}".rstrip()


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Hold the folder of an unfinished job; yields whether it is finished."""
    finished = (folder / RESULTS_FILE).exists
    if finished():
        yield True
    else:
        # A worker can outlive the sweep that started it; once it is done, its result counts.
        with FileLock(folder / LOCK_FILE):
            yield finished()


def _open_record(cfg: DictConfig, hydra: HydraConf, folder: Path) -> None:
    """Say in the job's folder what it is, and clear away what an earlier attempt left half-done."""
    kept = {".hydra", LOCK_FILE, JOB_FILE, f"{hydra.job.name}.log"}
    for path in folder.iterdir() if (folder / JOB_FILE).exists() else ():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    _write_record(hydra, folder, error=None)
    if "TensorBoard" in (OmegaConf.select(cfg, "logger._target_") or ""):
        _write_hparams(cfg, hydra, folder)


#: Keys that decide how a sweep goes and nothing about what a job computes.
_HOW_NOT_WHAT = ("sweep", "launcher")


def _write_record(hydra: HydraConf, folder: Path, error: str | None) -> None:
    record = {
        "number": hydra.job.num,
        "command": len(read_commands(folder.parent)),
        "overrides": [o for o in hydra.overrides.task if not key_of(o).startswith(_HOW_NOT_WHAT)],
        "varied": [key_of(override) for override in varied_overrides(hydra)],
        "error": error,
    }
    with atomic_write(folder / JOB_FILE) as path:
        path.write_text(json.dumps(record, indent=2) + "\n")


def _write_hparams(cfg: DictConfig, hydra: HydraConf, folder: Path) -> None:
    """Tell TensorBoard's HParams tab what was swept; the metrics it finds by itself."""
    from torch.utils.tensorboard import SummaryWriter  # late: the job needs torch anyway
    from torch.utils.tensorboard.summary import hparams

    swept: dict[str, bool | int | float | str] = {}
    for override in varied_overrides(hydra):
        key = key_of(override)
        value = OmegaConf.select(cfg, key)
        # A group, such as loss=focal, is known by the name that was chosen.
        plain = isinstance(value, bool | int | float | str)
        swept[key] = value if plain else override.split("=", 1)[-1]
    _, session_start, _ = hparams(swept, {})  # type: ignore[no-untyped-call]
    with SummaryWriter(folder, filename_suffix=".hparams") as writer:
        writer.file_writer.add_summary(session_start)


def _objective(cfg: DictConfig, folder: Path) -> float | None:
    metric = OmegaConf.select(cfg, "sweep.metric")
    value = flatten(json.loads((folder / RESULTS_FILE).read_text())).get(metric)
    return value if isinstance(value, int | float) else None


def _fail(cfg: DictConfig, hydra: HydraConf, folder: Path, label: str, error: Exception) -> None:
    """Tell at once, and keep for the summary, that a job failed; the next ones go on."""
    interrupt.check()
    ours = isinstance(error, UserError)
    reason = described(error)
    log.error("%s", reason, exc_info=None if ours and not is_full_error_wanted() else error)
    with suppress(OSError):
        _write_record(hydra, folder, reason)
    where = "" if ours else f" (traceback in {folder / hydra.job.name}.log)"
    print(f"{label} failed: {reason}{where}", file=sys.stderr, flush=True)
    no_space = full_disk(error) or shutil.disk_usage(folder).free < _DISK_FULL
    if no_space or OmegaConf.select(cfg, "sweep.fail_fast"):
        with suppress(OSError):
            (folder.parent / STOP_FILE).touch()
        if interrupt.is_handled():
            raise SystemExit(1)


def _log_to_file_only() -> None:
    """In a sweep the screen gets one line a job; tables and messages go to the job's log."""
    logging.raiseExceptions = False  # a log that a full disk cuts short is no news of its own
    for logger in (logging.getLogger(), logging.getLogger("lora_mnist.report")):
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
