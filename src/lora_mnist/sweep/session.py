"""A sweep: its folder is claimed, its jobs run, it ends with a summary."""

import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.files import read_json, write_json
from lora_mnist.disk.numbers import flatten
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import command_line, program, quoted
from lora_mnist.run import Run, key_of, override
from lora_mnist.sweep.jobs import (
    JOB_FILE,
    LOCK_FILE,
    SWEEP_FILE,
    inputs_hash,
    is_finished,
    varied_overrides,
)
from lora_mnist.sweep.summary import Ranked, summarize

log = logging.getLogger(__name__)

#: The lock of the sweep that this process conducts; ``None`` without a sweep, and in the workers of
#: a parallel launcher. Hydra's callbacks cannot pass it to where the command ends.
_sweep_lock: FileLock | None = None
#: Held while a job runs in this process.
_job_runs = threading.Lock()


def is_conducting() -> bool:
    """Whether this process conducts a sweep, and is no worker of one."""
    return _sweep_lock is not None


def open_sweep(config: DictConfig) -> None:
    """Claim the sweep's folder, new or resumed, and write ``sweep.json``."""
    global _sweep_lock
    sweep = config.sweep
    accepted = ", ".join(sweep.metrics)
    if sweep.metric is None and OmegaConf.select(config, "hydra.sweeper.n_trials") is not None:
        raise UserError(f"sweep.metric=null: a search needs one; expected one of {accepted}")
    if sweep.metric and not any(fnmatchcase(str(sweep.metric), each) for each in sweep.metrics):
        raise UserError(f"sweep.metric={sweep.metric}: expected one of {accepted}, or null")
    fixed = [key for key, is_swept in swept_keys(config).items() if not is_swept]
    folder = Path(config.hydra.sweep.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"hydra.sweep.dir={folder}: another sweep is running there; expected one at a time"
        ) from error
    if sweep.resume is None and (folder / SWEEP_FILE).exists():
        raise UserError(
            f"hydra.sweep.dir={folder}: holds another sweep; "
            f"expected a new folder, or {override('sweep.resume', folder)}"
        )
    if OmegaConf.select(config, "hydra.sweeper.sampler.seed") is not None:
        # A seeded sampler draws the same trials again. In a new study, finished jobs answer them at
        # once.
        (folder / "optuna.db").unlink(missing_ok=True)
    # Ray would take lines of different jobs for repetitions, and report its use to its makers.
    for name in ("RAY_DEDUP_LOGS", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    run = Run.of_command_line(config.hydra, folder)
    left_out = ("hydra.mode=", "sweep.resume=", "hydra.sweep.dir=")
    command = command_line(["-m", *run.typed_without(*left_out)])
    content = {
        "commands": [*read_json(folder / SWEEP_FILE).get("commands", []), command],
        "fixed": fixed,
        "entry": program(),
        "metric": sweep.metric,
        "columns": OmegaConf.to_container(sweep.columns, resolve=True),
    }
    write_json(folder / SWEEP_FILE, content)
    _sweep_lock = lock


def swept_keys(config: DictConfig) -> dict[str, bool]:
    """The keys that a command sets, and whether each is swept."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{k}={v}" for k, v in params.items()), *config.hydra.overrides.task]
    # glob(*) asks the loader which options a group has.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    keys = {}
    for parsed in parser.parse_overrides(texts):
        keys[parsed.get_key_element().lstrip("+~")] = parsed.is_sweep_override()
    return keys


def run_swept(
    function: Callable[[DictConfig, Run], object],
    cfg: DictConfig,
    run: Run,
    hydra: HydraConf,
    explain: Callable[[BaseException], tuple[str, int]],
) -> float | None:
    """Run one job unless it has finished. If it fails, print and record why, and return.

    ``function`` leaves ``results.json`` in ``run.folder``; ``explain`` turns an exception into a
    line and an exit code. Returns the value of ``sweep.metric``, for sweepers that search.
    """
    if not is_conducting():
        # In a worker: Ctrl+C reaches all processes, and the conducting one ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_after_the_sweep()
    # The screen gets one line a job; tables and messages go to the job's log.
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
    folder, log_file = run.folder, f"{hydra.job.name}.log"
    label = f"#{hydra.job.num} {' '.join(varied_overrides(hydra))}".rstrip()
    started = time.perf_counter()
    with _job_runs, FileLock(folder / LOCK_FILE):  # a worker can outlive the sweep that started it
        was_finished = is_finished(folder)
        before = read_json(folder / JOB_FILE)
        record = before | {"error": None}
        if not was_finished:
            # An earlier attempt may have left something half-done.
            for path in folder.iterdir() if before else ():
                if path.is_dir() and path.name != ".hydra":
                    shutil.rmtree(path)
                elif path.is_file() and path.name not in (LOCK_FILE, log_file):
                    path.unlink()
            how = ("sweep", "launcher")  # these say how jobs run, and not what they compute
            typed = hydra.overrides.task
            record |= {  # fields of Job
                "command": len(read_json(Path(hydra.sweep.dir) / SWEEP_FILE)["commands"]),
                "overrides": [o for o in typed if key_of(o).partition(".")[0] not in how],
                "inputs": inputs_hash(cfg),
            }
            write_json(folder / JOB_FILE, record)
        try:
            if not was_finished:
                function(cfg, run)
        except Exception as error:
            reason, is_ours = one_line(explain(error)[0]), isinstance(error, UserError)
            record |= {"error": reason}
            log.error("%s", reason, exc_info=None if is_ours else error)
            where = "" if is_ours else f" (traceback in {folder / log_file})"
            print(f"{label} failed: {reason}{where}", file=sys.stderr, flush=True)
            return None
        finally:
            if record != before:
                write_json(folder / JOB_FILE, record)
            gc.collect()  # a Trainer and what it trains hold each other, and the images
    value = flatten(read_json(folder / RESULTS_FILE)).get(str(cfg.sweep.metric))
    metric = "" if value is None else f"{cfg.sweep.metric} {value:.6g}, "
    seconds = "finished before" if was_finished else f"{time.perf_counter() - started:.1f} s"
    print(f"{label}: {metric}{seconds}", flush=True)
    return value


@cache
def _end_after_the_sweep() -> None:
    """Once a process: let this worker end, after its job, when the sweep's process is gone.

    joblib's workers would outlive a killed sweep: after five idle minutes one tells the sweep that
    it ends, and waits for ever for the answer.
    """
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with _job_runs:
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def close_sweep(reason: str | None, code: int) -> tuple[int, Path | None]:
    """Write and print the summary of the sweep that this process conducts.

    ``reason`` says why the sweep ended early, with the exit code ``code``. Returned are the
    process's exit code, 0 if every job of the command finished, and the sweep's folder, or ``None``
    if it has no jobs.
    """
    global _sweep_lock
    assert _sweep_lock is not None
    lock, _sweep_lock = _sweep_lock, None
    lock.release()
    folder = Path(lock.lock_file).parent
    ranked = Ranked(folder)
    command = len(ranked.sweep["commands"])
    if reason and code < 128 and not any(job.command == command for job in ranked.jobs):
        print(reason, file=sys.stderr)  # no job has started: the same command would fail again
        if not ranked.jobs:  # report.py and sweep.resume would find a sweep here
            for name in (SWEEP_FILE, LOCK_FILE, "multirun.yaml"):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # a folder with other files stays
                folder.rmdir()
        return code, None
    if ranked.jobs:
        print(summarize(ranked), flush=True)
    # A job that does not meet its requirements is not run again, but stays a failure.
    unfinished = [job for job in ranked.unfinished if job.command == command or job.results]
    if reason or unfinished:
        text = reason or f"{len(unfinished)} failed"
        if reason or not all(job.results for job in unfinished):
            resume = quoted(override("sweep.resume", folder))
            text += f"; go on with: {ranked.sweep['commands'][-1]} {resume}"
        print(text, file=sys.stderr)
        code = code or 1
    elif ranked.metric and ranked.groups and not ranked.best:
        results = ranked.groups[0].jobs[0].results
        numbers = [key for key in results if key.startswith("val.") and not key[-1].isdigit()]
        expected = f"no job has it; expected {', '.join(numbers) or 'data.val_size > 0'}, or null"
        print(f"sweep.metric={ranked.metric}: {expected}", file=sys.stderr)
        code = UserError.exit_code
    for title, key in ranked.sweep["columns"].items():
        column = f"sweep.columns.{title}={key}"
        has_it = any(key in job.results for job in ranked.jobs)
        if ranked.groups and not has_it and column in ranked.sweep["commands"][-1]:
            print(f"{column}: results.json has no such number", file=sys.stderr)
    return code, folder if ranked.jobs else None
