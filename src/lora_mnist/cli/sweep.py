"""Runs the jobs of a sweep, each in a folder of its own, and summarizes them in one table."""

import gc
import logging
import shutil
import sys
import time
from pathlib import Path

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from lora_mnist.cli.explain import log_failure
from lora_mnist.config.run import Command, Run, override_key
from lora_mnist.errors import UserError, one_line, suggest_nearest
from lora_mnist.files import flatten, read_json, write_json
from lora_mnist.run_paths import FAILED_FILE, RESULTS_FILE, refuse_used_folder
from lora_mnist.show.summary import (
    choose_direction,
    format_best_job,
    format_sweep_table,
    summarize,
    write_summary,
)

# hydra.sweeper.direction of a search
OmegaConf.register_new_resolver("lora_mnist.choose_direction", choose_direction, replace=True)

#: Prefixes of the numbers of test images.
_NEVER_CHOOSE = ("test", "mistakes")


def open_sweep(cfg: DictConfig, hydra_conf: HydraConf) -> None:
    """Create the sweep's folder; raise if it is used, or if test images would rank the jobs."""
    metric = str(cfg.sweep.metric)
    if metric.startswith(_NEVER_CHOOSE):
        raise UserError(
            f"sweep.metric={metric}: expected a number of validation images, such as val.errors; "
            "test images never choose"
        )
    folder = Path(hydra_conf.sweep.dir)
    refuse_used_folder("hydra.sweep.dir", folder)
    folder.mkdir(parents=True, exist_ok=True)  # a search may keep its study there


def run_job(command: Command, cfg: DictConfig, run: Run, hydra_conf: HydraConf) -> float | None:
    """Run one job; return its ``sweep.metric``, for sweepers that search, or ``None``."""
    # The screen gets one line a job; tables and messages go to the job's log.
    for name in (None, *(hydra_conf.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
    started = time.perf_counter()
    try:
        command(cfg, run)
    except Exception as error:
        reason = one_line(log_failure(error))
        write_json(run.folder / FAILED_FILE, {"overrides": run.overrides, "error": reason})
        where = f"; log: {run.folder / hydra_conf.job.name}.log"
        print(f"#{hydra_conf.job.num} failed: {reason}{where}", file=sys.stderr, flush=True)
        return None
    finally:
        gc.collect()  # a Trainer and what it trains hold each other, and the images
    results, metric = flatten(read_json(run.folder / RESULTS_FILE)), cfg.sweep.metric
    value = None if metric is None else results.get(metric, "")
    if str(metric).startswith("val") and not any(key.startswith("val.") for key in results):
        value = None  # the other jobs of the sweep go on
    if not isinstance(value, int | float | None):  # null is a number that is not finite
        numbers = [key for key in results if not key.startswith(_NEVER_CHOOSE) and key != metric]
        expected = f"a number in results.json, or null{suggest_nearest(str(metric), numbers)}"
        raise UserError(f"sweep.metric={metric}: expected {expected}")
    shown = "" if value is None else f"{metric} {value:.6g}, "
    print(f"#{hydra_conf.job.num}: {shown}{time.perf_counter() - started:.1f} s", flush=True)
    return value


def close_sweep(cfg: DictConfig, hydra_conf: HydraConf) -> None:
    """Write and print the summary of a sweep. If a job has failed, the exit code is 1."""
    from lora_mnist.show.figures import save_sweep_figure  # late: torch

    folder, metric = Path(hydra_conf.sweep.dir).absolute(), cfg.sweep.metric or ""
    summary = summarize(folder, metric)
    write_summary(summary)
    save_sweep_figure(summary)
    print(format_sweep_table(summary, cfg.sweep.columns))
    given_keys = {override_key(text) for text in hydra_conf.overrides.task}
    names = {name for row in summary.rows for job in row for name in job.results}
    for title, name in cfg.sweep.columns.items():
        if names and f"sweep.columns.{title}" in given_keys and name not in names:
            text = f"sweep.columns.{title}={name}: no job has it{suggest_nearest(str(name), names)}"
            print(text, file=sys.stderr)
    if summary.best:
        print(format_best_job(summary.best, metric))
    print(f"sweep: {folder}", flush=True)
    for job in summary.failed:
        swept = [f"{key}={job.values[key]}" for key in summary.swept]
        print("failed:", *swept, f"in {job.folder}: {job.error}", file=sys.stderr)
    if summary.failed:
        raise SystemExit(1)


def close_interrupted_sweep(folder: Path) -> str:
    """Return a line about an interrupted sweep's finished jobs; remove a sweep without any."""
    summary = summarize(folder, "")
    if summary.rows or summary.failed:
        write_summary(summary)
        finished = sum(len(row) for row in summary.rows)
        return f"finished jobs: {finished}, in {folder.absolute()}/summary.csv"
    if {path.name for path in folder.glob("*")} <= {"multirun.yaml"}:  # Hydra's
        shutil.rmtree(folder, ignore_errors=True)
    return ""
