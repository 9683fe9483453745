"""One job of a sweep, in whatever process it runs: skipped if finished, recorded if it fails."""

import gc
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from hydra.conf import HydraConf
from omegaconf import DictConfig

from lora_mnist.disk.files import write_json
from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.errors import RequirementError, UserError, one_line
from lora_mnist.project import Run
from lora_mnist.sweep import session
from lora_mnist.sweep.command import key_of
from lora_mnist.sweep.folder import LOCK_FILE, SWEEP_FILE, inputs_hash, varied_overrides
from lora_mnist.sweep.records import JOB_FILE, is_finished, read_job, read_json

log = logging.getLogger(__name__)


def run_swept(
    function: Callable[[DictConfig, Run], object],
    cfg: DictConfig,
    run: Run,
    hydra: HydraConf,
    explain: Callable[[BaseException], tuple[str, int]],
) -> float | None:
    """Run one job unless it is finished; if it fails, say so, keep the reason, and return.

    ``function`` leaves ``results.json`` in the folder that it is given; ``explain`` makes a line
    and an exit code of an exception. Returned is the value of ``sweep.metric``, for sweepers that
    search.
    """
    if not session.is_conducting():
        # A worker: Ctrl+C reaches all processes, and the one that conducts them ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The screen gets one line a job; tables and messages go to the job's log.
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
    folder, sweep = run.folder, Path(hydra.sweep.dir)
    label = f"#{hydra.job.num} {' '.join(varied_overrides(hydra))}".rstrip()
    started, seconds = time.perf_counter(), ""
    with FileLock(folder / LOCK_FILE):  # a worker can outlive the sweep that started it
        if not is_finished(folder):
            if (folder / JOB_FILE).exists():  # an earlier attempt left something half-done
                for path in folder.iterdir():
                    if path.name in (".hydra", LOCK_FILE, f"{hydra.job.name}.log"):
                        continue
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
            how = ("sweep", "launcher")  # and not what is computed
            typed = hydra.overrides.task
            record: dict[str, object] = {
                "command": len(read_json(sweep / SWEEP_FILE)["commands"]),
                "overrides": [o for o in typed if key_of(o).partition(".")[0] not in how],
                "error": None,
                "inputs": inputs_hash(cfg),
            }
            write_json(folder / JOB_FILE, record)
            try:
                function(cfg, run)
            except Exception as error:
                reason = one_line(explain(error)[0])
                has_results = isinstance(error, RequirementError)
                record |= {"error": reason, "has_results": has_results}
                write_json(folder / JOB_FILE, record)
                is_ours = isinstance(error, UserError)
                log.error("%s", reason, exc_info=None if is_ours else error)
                where = "" if is_ours else f" (traceback in {folder / hydra.job.name}.log)"
                print(f"{label} failed: {reason}{where}", file=sys.stderr, flush=True)
                return None
            finally:
                gc.collect()  # a Trainer and what it trains hold each other, and the images
            seconds = f"{time.perf_counter() - started:.1f} s"
    job = read_job(folder)
    assert job is not None
    if seconds == "":  # this command may require something else than the one that ran the job
        record, unmet = read_json(folder / JOB_FILE), None
        try:
            check_require(parse_require(cfg.get("require")), job.results)
        except UserError as error:
            unmet = one_line(error)
        if unmet != job.error:
            write_json(folder / JOB_FILE, record | {"error": unmet, "has_results": True})
        if unmet:
            print(f"{label} failed: {unmet}", file=sys.stderr, flush=True)
            return None
    value = job.results.get(str(cfg.sweep.metric))
    metric = "" if value is None else f"{cfg.sweep.metric} {value:.6g}, "
    print(f"{label}: {metric}{seconds or 'finished before'}", flush=True)
    return value
