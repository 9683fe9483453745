"""A sweep from its first job to its last: what it sweeps, one job after the other, how to go on."""

import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.files import read_json, write_json
from lora_mnist.disk.numbers import flatten
from lora_mnist.disk.run_paths import RESULTS_FILE, refuse_used_folder
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import command_line
from lora_mnist.run import Run, key_of, override
from lora_mnist.sweep.jobs import (
    JOB_FILE,
    SWEEP_FILE,
    base_sha256,
    is_finished,
    swept_overrides,
)

log = logging.getLogger(__name__)


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


def open_sweep(config: DictConfig) -> None:
    """Refuse to rank by test images, and write into the sweep's folder what is swept."""
    metric = config.sweep.metric
    is_search = OmegaConf.select(config, "hydra.sweeper.n_trials") is not None
    if str(metric).startswith(("test", "mistakes")) or (metric is None and is_search):
        raise UserError(
            f"sweep.metric={metric or 'null'}: expected a number of validation images, such as "
            "val.errors; test images never choose, and a search needs one"
        )
    folder = Path(config.hydra.sweep.dir)
    if config.sweep.resume is None:
        refuse_used_folder("hydra.sweep.dir", folder)
    for path in folder.glob(f"*/{JOB_FILE}"):
        if not is_finished(path.parent):  # it runs again, or this command does not have it
            path.unlink()
    swept = [key for key, is_swept in swept_keys(config).items() if is_swept]
    write_json(folder / SWEEP_FILE, {"swept": swept})


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
    # The screen gets one line a job; tables and messages go to the job's log.
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
    folder, log_file = run.folder, f"{hydra.job.name}.log"
    swept = swept_overrides(Path(hydra.sweep.dir), hydra.overrides.task)
    label = f"#{hydra.job.num} {' '.join(swept)}".rstrip()
    started = time.perf_counter()
    # With base_ckpt=null the base is looked up, and may be another one by now.
    was_finished = is_finished(folder) and cfg.get("base_ckpt", "") is not None
    if not was_finished:
        left = [p for p in folder.iterdir() if p.name not in (hydra.output_subdir, log_file)]
        if left and cfg.sweep.resume is None and not (folder / JOB_FILE).exists():
            raise UserError(
                f"hydra.sweep.subdir: {folder} has a {left[0].name} already; expected new folders"
            )
        for path in left:  # an earlier attempt may have left something half-done
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        how = ("hydra", "sweep", "launcher")  # these say how jobs run, and not what they compute
        typed = [o for o in run.typed or () if key_of(o).partition(".")[0] not in how]
        record = {  # fields of Job
            "overrides": typed,
            "base_sha256": base_sha256(cfg),
            "status": "started",
            "error": None,
        }
        write_json(folder / JOB_FILE, record)
        try:
            function(cfg, run)
        except Exception as error:
            reason, is_ours = one_line(explain(error)[0]), isinstance(error, UserError)
            write_json(folder / JOB_FILE, {**record, "status": "failed", "error": reason})
            log.error("%s", reason, exc_info=None if is_ours else error)
            where = "" if is_ours else f" (traceback in {folder / log_file})"
            print(f"{label} failed: {reason}{where}", file=sys.stderr, flush=True)
            return None
        finally:
            gc.collect()  # a Trainer and what it trains hold each other, and the images
        write_json(folder / JOB_FILE, {**record, "status": "finished"})
    value = flatten(read_json(folder / RESULTS_FILE)).get(str(cfg.sweep.metric))
    metric = "" if value is None else f"{cfg.sweep.metric} {value:.6g}, "
    seconds = "finished before" if was_finished else f"{time.perf_counter() - started:.1f} s"
    print(f"{label}: {metric}{seconds}", flush=True)
    return value


def resume_command(hydra: HydraConf) -> str:
    """The command that goes on with a sweep."""
    folder = Path(hydra.sweep.dir).absolute()
    run = Run.of_command_line(hydra, folder)
    typed = run.typed_without("hydra.mode=", "hydra.sweep.dir=", "sweep.resume=")
    return command_line(["-m", *typed, override("sweep.resume", folder)])


def end_early(hydra: HydraConf) -> str | None:
    """The command that goes on with a sweep which an error or a signal has ended.

    ``None``: it was no sweep, or no job of it has begun. Then its folder is removed, unless it has
    other files.
    """
    folder = Path(hydra.sweep.dir)
    if hydra.mode != RunMode.MULTIRUN or not (folder / SWEEP_FILE).is_file():
        return None
    if any(folder.glob(f"*/{JOB_FILE}")):
        return resume_command(hydra)
    for name in (SWEEP_FILE, "multirun.yaml"):  # ours, and Hydra's
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return None
