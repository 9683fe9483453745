"""One job of a sweep, in whatever process it runs: skipped if finished, recorded if it fails."""

import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError, one_line
from lora_mnist.sweep import session
from lora_mnist.sweep.command import key_of
from lora_mnist.sweep.folder import (
    LOCK_FILE,
    STOP_FILE,
    job_hash,
    read_sweep,
    varied_overrides,
)
from lora_mnist.sweep.records import JOB_FILE, is_finished, read_job, write_record

log = logging.getLogger(__name__)


def run_swept(
    function: Callable[[DictConfig, Path], object],
    cfg: DictConfig,
    explain: Callable[[BaseException], tuple[str, int]],
) -> float | None:
    """Run one job unless it is finished; if it fails, say so, keep the reason, and return.

    Args:
        function: the command; leaves ``results.json`` in the folder that it is given.
        cfg: the job's configuration.
        explain: turns an exception into a line, and an exit code.

    Returns:
        The value of ``sweep.metric``, for sweepers that search; ``None`` where there is none.
    """
    hydra = HydraConfig.get()
    if not session.is_conducting():
        # A worker: Ctrl+C reaches all processes, and the one that conducts them ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _log_to_file_only(hydra)
    folder = Path(hydra.runtime.output_dir)
    sweep = Path(hydra.sweep.dir)
    if (sweep / STOP_FILE).exists():
        return None
    varied = varied_overrides(hydra)
    label = f"#{hydra.job.num} {' '.join(varied)}".rstrip()
    # A worker can outlive the sweep that started it. Once it is done, its result counts.
    with nullcontext() if is_finished(folder) else FileLock(folder / LOCK_FILE):
        if is_finished(folder):
            session.say(f"{label}: finished before")
            return _metric(cfg, folder)
        _clear(folder, f"{hydra.job.name}.log")
        command = len(read_sweep(sweep).get("commands", []))
        how_not_what = ("sweep", "launcher")
        overrides = [o for o in hydra.overrides.task if key_of(o).split(".")[0] not in how_not_what]
        record = (command, overrides, [key_of(text) for text in varied])
        write_record(folder, *record)
        started, computes = time.perf_counter(), job_hash(cfg)
        try:
            function(cfg, folder)
            if job_hash(cfg) != computes:
                inputs = OmegaConf.to_container(cfg.sweep.inputs, resolve=True)
                raise UserError(
                    f"sweep.inputs={inputs}: changed while the job ran; expected the same files "
                    "throughout, so it has to run again"
                )
        except Exception as error:
            reason = one_line(explain(error)[0])
            write_record(folder, *record, error=reason)
            is_ours = isinstance(error, UserError)
            log.error("%s", reason, exc_info=None if is_ours else error)
            where = "" if is_ours else f" (traceback in {folder / hydra.job.name}.log)"
            session.say(f"{label} failed: {reason}{where}", sys.stderr)
            if cfg.sweep.fail_fast:
                (sweep / STOP_FILE).touch()
                if session.is_conducting():
                    raise SystemExit(1) from None
            return None
    value = _metric(cfg, folder)
    told = "" if value is None else f"{cfg.sweep.metric} {value:.6g}, "
    session.say(f"{label}: {told}{time.perf_counter() - started:.1f} s")
    return value


def _metric(cfg: DictConfig, folder: Path) -> float | None:
    job = read_job(folder)
    return job.value(cfg.sweep.metric) if job else None


def _clear(folder: Path, log_name: str) -> None:
    """Clear away what an earlier attempt left half-done."""
    if (folder / JOB_FILE).exists():
        for path in folder.iterdir():
            if path.name in (".hydra", LOCK_FILE, JOB_FILE, log_name):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _log_to_file_only(hydra: HydraConf) -> None:
    """In a sweep the screen gets one line a job; tables and messages go to the job's log."""
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
