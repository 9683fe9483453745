"""Sweeps that keep books: no job lost, none run twice, none written over.

Hydra's sweeper and launcher decide which jobs run and where; any of them will do. This module
gives each job a folder named by its configuration and a record in it, and each sweep a summary. It
imports no torch: the process that conducts a parallel sweep, or skips finished jobs, needs none.

The files of a sweep: ``sweep.json`` holds the commands that started and resumed it; in each job's
folder ``job.json`` says what the job is and, if it failed, why, and ``results.json``, which is
written last and atomically, says that it is finished.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lora_mnist import interrupt
from lora_mnist.errors import UserError, one_line
from lora_mnist.files import atomic_write
from lora_mnist.run_folder import make_or_exit
from lora_mnist.summary import JOB_FILE, RESULTS_FILE, STUDY_FILE, flatten, summarize

log = logging.getLogger(__name__)

_SWEEP_FILE = "sweep.json"
_LOCK_FILE = ".lock"
#: Its presence keeps jobs from starting, in whatever process: one of them has failed for all.
_STOP_FILE = ".stop"
#: Less than this and a failure is put down to the full disk (bytes).
_DISK_FULL = 1 << 20


@dataclass
class _Sweep:
    """The sweep that this process conducts."""

    folder: Path
    entry: str
    metric: str | None
    mode: str
    overrides: list[str]
    lock: FileLock

    def resume_command(self) -> str:
        kept = [o for o in self.overrides if not o.startswith("sweep.resume=")]
        return command_line(self.entry, ["-m", *kept, f"sweep.resume={self.folder}"])


#: None in the workers of a parallel launcher, and where no sweep runs.
_conducted: _Sweep | None = None


class SweepCallback(Callback):
    """Hydra callback: opens the books of a sweep before its first job."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse to resume what is no sweep."""
        if OmegaConf.select(config, "sweep.resume") is not None:
            _exit(f"sweep.resume={config.sweep.resume}: expected a sweep; start it with -m")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the sweep's folder, new or resumed, and prepare what its jobs will share."""
        global _conducted
        try:
            _conducted = _open_sweep(config)
        except CompactHydraException as error:
            _exit(str(error), code=1)
        except Exception as error:  # of which Hydra would make a warning
            traceback.print_exc()
            raise SystemExit(1) from error


@contextmanager
def conduct() -> Iterator[None]:
    """Around Hydra's main: whichever way a sweep ends, write its summary and set the exit code.

    0 if every job finished, 1 if one failed, 2 for a mistake in the command, 130 or 143 after an
    interrupt, which holds for a single run too.
    """
    global _conducted
    _conducted, code = None, 0
    with interrupt.handle_signals() as received:
        try:
            yield
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except SystemExit as exit_:
            if _conducted is None and not received.number:
                raise
            code = exit_.code if isinstance(exit_.code, int) else 1
        except Exception:  # with HYDRA_FULL_ERROR=1
            if _conducted is not None:
                _conclude(_conducted, received, 1)
            raise
        received.hold()
        if _conducted is not None:
            code = _conclude(_conducted, received, code)
        elif received.number:
            print(f"interrupted by {received.number.name}", file=sys.stderr, flush=True)
        if code := received.exit_code or code:
            raise SystemExit(code)


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
    label = _label(hydra.job.num, _varied(hydra))
    if (folder.parent / _STOP_FILE).exists():
        yield Job(due=False)
        return
    with _only_writer(folder) as finished:
        if finished:
            print(f"{label}: finished before", flush=True)
            yield Job(due=False, objective=_objective(cfg, folder))
            return
        job = Job()
        started = time.perf_counter()
        try:
            _open_record(cfg, hydra, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
            yield Job(due=False)
            return
        try:
            yield job
            job.objective = _objective(cfg, folder)
        except Exception as error:
            _fail(cfg, hydra, folder, label, error)
        else:
            value = "" if job.objective is None else f"{cfg.sweep.metric} {job.objective:.6g}, "
            print(f"{label}: {value}{time.perf_counter() - started:.1f} s", flush=True)


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
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(_varied(_root_.hydra)))[:100]
    name = f"{name}-{digest}" if name else digest
    sweep = Path(_root_.hydra.sweep.dir)
    if not (sweep / name).exists():
        # Another command may have swept other keys: the configuration counts, not the name.
        for folder in (*sweep.glob(f"*-{digest}"), *sweep.glob(digest)):
            return folder.name
    return name


def hydra_subfolder(*, _root_: DictConfig) -> str | None:
    """Resolver for ``hydra.output_subdir``: Hydra writes nothing into a finished job's folder."""
    folder = OmegaConf.select(_root_, "hydra.runtime.output_dir", default=None)
    sweeping = OmegaConf.select(_root_, "hydra.mode") == RunMode.MULTIRUN
    return None if sweeping and folder and Path(folder, RESULTS_FILE).exists() else ".hydra"


def direction(mode: str) -> str:
    """Resolver for ``hydra.sweeper.direction``: Optuna's word for ``sweep.mode``."""
    return {"max": "maximize", "min": "minimize"}.get(mode, mode)


OmegaConf.register_new_resolver("lora_mnist.direction", direction, replace=True)
OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.hydra_subfolder", hydra_subfolder, replace=True)


def command_line(entry: str, arguments: Iterable[str]) -> str:
    """A command ready to paste into a shell."""
    return shlex.join(["python", entry, *arguments])


# --- opening a sweep -----------------------------------------------------------------------------


def _open_sweep(config: DictConfig) -> _Sweep:
    HydraConfig.instance().set_config(config)  # Hydra does so later; ${hydra:...} needs it here
    _check_ranking(config)
    fixed, jobs = _read_grid(config)
    resumed = _resumed_folder(config)
    folder = resumed or Path(config.hydra.sweep.dir).absolute()
    lock = _claim(folder, resumed is not None)
    # About the SQLAlchemy that the sweeper's optuna needs; nothing a user could act on.
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
    if OmegaConf.select(config, "hydra.sweeper.sampler.seed") is not None:
        # The sweeper would draw on from here with its generator at the start, and repeat itself.
        # The finished jobs' results fill the study again.
        (folder / STUDY_FILE).unlink(missing_ok=True)
    _share_cores(config, jobs)
    sweep = _Sweep(
        folder=folder,
        entry=f"{config.hydra.job.name}.py",
        metric=OmegaConf.select(config, "sweep.metric"),
        mode=OmegaConf.select(config, "sweep.mode"),
        overrides=[*config.hydra.overrides.task, *_launch_overrides(config)],
        lock=lock,
    )
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        # The jobs' configurations are composed anew from these.
        config.hydra.overrides.hydra = [
            *config.hydra.overrides.hydra,
            f"hydra.sweep.dir={_quoted(str(folder))}",
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quoted, fixed))}]",
        ]
    commands = [*_commands(folder), command_line(sweep.entry, ["-m", *sweep.overrides])]
    with _writing(folder), atomic_write(folder / _SWEEP_FILE) as path:
        path.write_text(json.dumps({"commands": commands}, indent=2) + "\n")
    return sweep


def _exit(message: str, code: int = 2) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)


def _check_ranking(config: DictConfig) -> None:
    metric, mode = (OmegaConf.select(config, f"sweep.{key}") for key in ("metric", "mode"))
    if mode not in ("min", "max"):
        _exit(f"sweep.mode={mode}: expected max or min")
    if metric is not None and str(metric).startswith("test"):
        _exit(
            f"sweep.metric={metric}: the test set must not choose; "
            "expected a validation metric such as val.accuracy, or null"
        )
    if metric is None and OmegaConf.select(config, "hydra.sweeper.n_trials"):
        _exit("sweep.metric=null: a search needs one; expected one such as val.accuracy")


def _read_grid(config: DictConfig) -> tuple[list[str], int]:
    """The keys that the command leaves fixed, and how many jobs a grid over the others has."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{k}={v}" for k, v in params.items()), *config.hydra.overrides.task]
    fixed, sizes = {}, {}
    for override in OverridesParser.create().parse_overrides(texts):
        key = override.get_key_element().lstrip("+~")
        fixed[key], sizes[key] = not override.is_sweep_override(), 1
        if override.is_discrete_sweep():
            sizes[key] = sum(1 for _ in override.sweep_string_iterator())
            if sizes[key] == 0:
                _exit(f"{override.input_line}: an empty grid; expected at least one value")
    return [key for key in fixed if fixed[key]], prod(sizes.values())


def _resumed_folder(config: DictConfig) -> Path | None:
    resume = OmegaConf.select(config, "sweep.resume")
    if resume is None:
        return None
    if resume == "latest":
        parent = Path(config.hydra.sweep.dir).absolute().parent
        # The folders are named by the time.
        found = sorted(path.parent for path in parent.glob(f"*/{_SWEEP_FILE}"))
        if not found:
            _exit(f"sweep.resume=latest: expected a sweep in {parent}, found none")
        return found[-1]
    folder = Path(str(resume)).absolute()
    if not (folder / _SWEEP_FILE).is_file():
        _exit(f"sweep.resume={resume}: no sweep; expected a folder with {_SWEEP_FILE}, or latest")
    return folder


def _claim(folder: Path, resumed: bool) -> FileLock:
    """Make ``folder`` this process's own until it ends, however it ends."""
    key = "sweep.resume" if resumed else "hydra.sweep.dir"
    make_or_exit(key, folder)
    lock = FileLock(folder / _LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        _exit(f"{key}={folder}: another sweep is running there; expected one at a time")
    if not resumed and (folder / _SWEEP_FILE).exists():
        _exit(
            f"hydra.sweep.dir={folder}: holds another sweep; "
            f"expected a new folder, or sweep.resume={folder}"
        )
    (folder / _STOP_FILE).unlink(missing_ok=True)
    return lock


def _commands(folder: Path) -> list[str]:
    """The commands that have worked on the sweep in ``folder``."""
    with suppress(OSError, ValueError, KeyError):
        commands: list[str] = json.loads((folder / _SWEEP_FILE).read_text())["commands"]
        return commands
    return []


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _exit(f"{folder}: cannot be written ({error.strerror})", code=1)


def _launch_overrides(config: DictConfig) -> list[str]:
    """What the command says to Hydra itself and a resumed sweep should hear again."""
    left_out = ("hydra.mode=", "hydra.sweep.dir=", "hydra.job.config.override_dirname.")
    return [o for o in config.hydra.overrides.hydra if not o.startswith(left_out)]


def _share_cores(config: DictConfig, jobs: int) -> None:
    """Give each of N joblib workers an equal share of the C cores: C / N threads.

    torch would take every core in every worker. A value that the user has set stays.
    """
    workers = OmegaConf.select(config, "hydra.launcher.n_jobs", default=None)
    if workers is None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    workers = workers if workers > 0 else max(1, cores + 1 + workers)  # joblib: -1 is all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // min(workers, jobs))))


def _quoted(text: str) -> str:
    """``text`` as one quoted value of Hydra's override grammar."""
    return "'" + text.replace("'", r"\'") + "'"


# --- one job -------------------------------------------------------------------------------------


def _varied(hydra: HydraConf) -> list[str]:
    """The job's overrides without those that all jobs of the command share."""
    fixed = set(hydra.job.config.override_dirname.exclude_keys)
    return [o for o in hydra.overrides.task if _key(o) not in fixed]


def _label(number: int, varied: Iterable[str]) -> str:
    return f"#{number} {' '.join(varied)}".rstrip()


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


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Hold the folder of an unfinished job; yields whether it is finished."""
    finished = (folder / RESULTS_FILE).exists
    if finished():
        yield True
    else:
        # A worker can outlive the sweep that started it; once it is done, its result counts.
        with FileLock(folder / _LOCK_FILE):
            yield finished()


def _open_record(cfg: DictConfig, hydra: HydraConf, folder: Path) -> None:
    """Say in the job's folder what it is, and clear away what an earlier attempt left half-done."""
    kept = {".hydra", _LOCK_FILE, JOB_FILE, f"{hydra.job.name}.log"}
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
        "command": len(_commands(folder.parent)),
        "overrides": [o for o in hydra.overrides.task if not _key(o).startswith(_HOW_NOT_WHAT)],
        "varied": [_key(override) for override in _varied(hydra)],
        "error": error,
    }
    with atomic_write(folder / JOB_FILE) as path:
        path.write_text(json.dumps(record, indent=2) + "\n")


def _write_hparams(cfg: DictConfig, hydra: HydraConf, folder: Path) -> None:
    """Tell TensorBoard's HParams tab what was swept; the metrics it finds by itself."""
    from torch.utils.tensorboard import SummaryWriter  # late: the job needs torch anyway
    from torch.utils.tensorboard.summary import hparams

    swept: dict[str, bool | int | float | str] = {}
    for override in _varied(hydra):
        key = _key(override)
        value = OmegaConf.select(cfg, key)
        # A group, such as loss=focal, is known by the name that was chosen.
        plain = isinstance(value, bool | int | float | str)
        swept[key] = value if plain else override.split("=", 1)[-1]
    _, session_start, _ = hparams(swept, {})  # type: ignore[no-untyped-call]
    with SummaryWriter(folder, filename_suffix=".hparams") as writer:
        writer.file_writer.add_summary(session_start)


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _objective(cfg: DictConfig, folder: Path) -> float | None:
    metric = OmegaConf.select(cfg, "sweep.metric")
    value = flatten(json.loads((folder / RESULTS_FILE).read_text())).get(metric)
    return value if isinstance(value, int | float) else None


def _fail(cfg: DictConfig, hydra: HydraConf, folder: Path, label: str, error: Exception) -> None:
    """Tell at once, and keep for the summary, that a job failed; the next ones go on."""
    interrupt.check()
    ours = isinstance(error, UserError)
    reason = one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"
    full = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    with suppress(OSError):
        log.error("%s", reason, exc_info=None if ours and not full else error)
        _write_record(hydra, folder, reason)
    where = "" if ours else f" (traceback in {folder / hydra.job.name}.log)"
    print(f"{label} failed: {reason}{where}", file=sys.stderr, flush=True)
    no_space = _names_full_disk(error) or shutil.disk_usage(folder).free < _DISK_FULL
    if no_space or OmegaConf.select(cfg, "sweep.fail_fast"):
        with suppress(OSError):
            (folder.parent / _STOP_FILE).touch()
        if interrupt.is_handled():
            raise SystemExit(1)


def _names_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _log_to_file_only() -> None:
    """In a sweep the screen gets one line a job; tables and messages go to the job's log."""
    for logger in (logging.getLogger(), logging.getLogger("lora_mnist.report")):
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)


# --- closing a sweep -----------------------------------------------------------------------------


def _conclude(sweep: _Sweep, received: interrupt.Interrupt, code: int) -> int:
    """Write and print the summary; the process's exit code."""
    received.hold()
    try:
        with _writing(sweep.folder):
            summary = summarize(sweep.folder, sweep.metric, sweep.mode, sweep.entry)
    finally:
        sweep.lock.release()
    print(summary.text, flush=True)
    now = len(_commands(sweep.folder))
    unfinished = [row for row in summary.rows if row.status != "finished" and row.command == now]
    failed = sum(row.status == "failed" for row in unfinished)
    if received.number:
        problem = f"interrupted by {received.number.name}"
    elif failed:
        problem = f"{failed} failed"
    elif code or unfinished:
        problem = "not all jobs ran"
    else:
        if summary.complaint:
            _exit(summary.complaint)
        return 0
    print(f"{problem}; go on with: {sweep.resume_command()}", file=sys.stderr, flush=True)
    return received.exit_code or code or 1
