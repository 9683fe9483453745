"""One job of a sweep, in whatever process it runs: skipped if finished, recorded if it fails."""

import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock
from hydra.conf import HydraConf
from omegaconf import DictConfig

from lora_mnist.disk.files import write_json
from lora_mnist.disk.numbers import check_require, flatten, parse_require
from lora_mnist.disk.run_folder import RESULTS_FILE
from lora_mnist.errors import RequirementError, UserError, one_line
from lora_mnist.project import Run, key_of
from lora_mnist.sweep import session
from lora_mnist.sweep.folder import LOCK_FILE, SWEEP_FILE, inputs_hash, varied_overrides
from lora_mnist.sweep.records import JOB_FILE, is_finished, read_json

log = logging.getLogger(__name__)

#: Held while a job runs in this process.
_job_runs = threading.Lock()


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
    if not session.is_conducting():
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
            record |= {
                "command": len(read_json(Path(hydra.sweep.dir) / SWEEP_FILE)["commands"]),
                "overrides": [o for o in typed if key_of(o).partition(".")[0] not in how],
                "inputs": inputs_hash(cfg),
            }
            write_json(folder / JOB_FILE, record)
        try:
            if was_finished:  # by a command that may have required something else
                check_require(parse_require(cfg.get("require")), read_json(folder / RESULTS_FILE))
            else:
                function(cfg, run)
        except Exception as error:
            reason, is_ours = one_line(explain(error)[0]), isinstance(error, UserError)
            record |= {"error": reason, "has_results": isinstance(error, RequirementError)}
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
    """Let this worker end, after its job, when the process that started it is gone.

    joblib's workers would wait for ever for a sweep that was killed.
    """
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with _job_runs:
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
