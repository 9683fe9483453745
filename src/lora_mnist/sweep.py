"""Sweeps: no job is run twice, lost or overwritten, and all end in one summary.

Hydra's sweeper and launcher decide which jobs run and where. The summary is made of the files that
each leaves: job.json, which says how it ended, and results.json.
"""

import gc
import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import StatisticsError, mean, stdev
from typing import Any

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lora_mnist.command import Run, key_of, override, refuse_names_of_groups
from lora_mnist.disk.files import read_json, write_csv, write_json
from lora_mnist.disk.numbers import affects_results, better_end, flatten, numeric_sort_key
from lora_mnist.disk.run_paths import RESULTS_FILE, base_name, latest, refuse_used_folder
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import command_line

log = logging.getLogger(__name__)

JOB_FILE, JOB_LOCK = "job.json", ".lock"
#: Has the number of the sweep's last command, and the keys that it sweeps.
SWEEP_FILE = "sweep.json"


# --- folders -------------------------------------------------------------------------------------


def sweep_folder(new: str, resume: str | None) -> str:
    """Resolver for ``hydra.sweep.dir``: ``new``, or the sweep that ``sweep.resume`` names."""
    if resume is None:
        return new
    folder = Path(str(resume)).absolute()
    if resume == "latest":
        job = latest(Path(new).parent, f"*/*/{JOB_FILE}")  # a sweep without jobs does not count
        folder = job.parents[1] if job else folder
    if not (folder / SWEEP_FILE).is_file():
        raise UserError(
            f"sweep.resume={resume}: expected the folder of a sweep, with {SWEEP_FILE}, or latest"
        )
    return str(folder)


def job_folder(*, _root_: DictConfig) -> str:
    """Resolver for ``hydra.sweep.subdir``: what was swept, then a hash of what the job computes."""
    sweep, digest = Path(_root_.hydra.sweep.dir), what_it_computes(_root_)
    for folder in sweep.glob(f"*{digest}"):
        return folder.name  # an earlier command may have swept other keys
    swept = swept_values(_root_.hydra.overrides.task, read_json(sweep / SWEEP_FILE))
    name = ",".join(f"{key}={value}" for key, value in swept.items())
    name = re.sub(r"[^\w.=,+-]+", "_", name)[:100]
    return f"{name}-{digest}" if name else digest


# Cached, so that the folder is the same in every job.
OmegaConf.register_new_resolver(
    "lora_mnist.sweep_folder", sweep_folder, use_cache=True, replace=True
)
OmegaConf.register_new_resolver("lora_mnist.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("lora_mnist.better_end", better_end, replace=True)


def what_it_computes(config: DictConfig) -> str:
    """A hash of a job's configuration and of the files of its base and its adapter."""
    # As it is written, interpolations not resolved: they may name folders of this machine.
    written = flatten(OmegaConf.to_container(config, resolve=False), into=dict)
    settings = {key: value for key, value in written.items() if affects_results(key)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    base, adapter = config.get("base_ckpt"), config.get("adapter")
    if base is None:  # the current one, or that of the adapter
        name = base_name(config.get("data") or {}, config.get("net") or {})
        base = Path(str(OmegaConf.select(config, "paths.bases")), f"{name}.ckpt")
    files = [Path(base)]
    if config.get("stage") == "pretrain":  # it writes that file
        files = []
    if adapter:
        files += sorted(Path(adapter).rglob("adapter_*"))  # in its own folder, or in its run's
    for file in files:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def swept_keys(config: DictConfig) -> dict[str, bool]:
    """The keys that a command sets, and whether each is swept."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{k}={v}" for k, v in params.items()), *config.hydra.overrides.task]
    # glob(*) asks the loader which options a group has.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    keys = {}
    for text in texts:
        keys[key_of(text)] = parser.parse_override(text).is_sweep_override()
    return keys


def swept_values(overrides: Iterable[str], sweep: Mapping[str, Any]) -> dict[str, str]:
    """The values of a job for the keys that its ``sweep.json`` has, as they were typed."""
    values = {}
    for text in overrides:
        if key_of(text) in sweep.get("swept", []):
            values[key_of(text)] = text.partition("=")[2]
    return values


# --- from the first job to the last --------------------------------------------------------------


def open_sweep(config: DictConfig, keys: Mapping[str, bool]) -> None:
    """Refuse to rank by test images, and write into the sweep's folder what is swept."""
    refuse_names_of_groups(config)
    if "resume" in keys:
        raise UserError("resume: expected a single run; a sweep has sweep.resume")
    if str(config.sweep.metric).startswith(("test", "mistakes")):
        raise UserError(
            f"sweep.metric={config.sweep.metric}: expected a number of validation images, such as "
            "val.errors; test images never choose"
        )
    written: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if written["subdir"] != "${lora_mnist.job_folder:}":
        raise UserError("hydra.sweep.subdir: expected none; jobs are named by what they compute")
    folder = Path(config.hydra.sweep.dir)
    if config.sweep.resume is None:
        refuse_used_folder("hydra.sweep.dir", folder)
    number = read_json(folder / SWEEP_FILE).get("command", 0) + 1
    swept = [key for key, is_swept in keys.items() if is_swept]
    write_json(folder / SWEEP_FILE, {"swept": swept, "command": number})


def run_job(
    function: Callable[[DictConfig, Run], object],
    cfg: DictConfig,
    run: Run,
    hydra: HydraConf,
    explain: Callable[[BaseException], tuple[str, int]],
) -> float | None:
    """Run one job unless it is done; return its ``sweep.metric``, for sweepers that search."""
    # The screen gets one line a job; tables and messages go to the job's log.
    for name in (None, *(hydra.job_logging.get("loggers") or ())):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.CRITICAL + 1)
    sweep = read_json(Path(hydra.sweep.dir, SWEEP_FILE))
    folder, log_file = run.folder, run.folder / f"{hydra.job.name}.log"
    swept = swept_values(run.typed or (), sweep)
    label = " ".join([f"#{hydra.job.num}", *(f"{key}={value}" for key, value in swept.items())])
    record = {  # fields of Job
        "overrides": run.typed_without("hydra", "launcher", "sweep"),  # they say how jobs run
        "swept": swept,
        "command": sweep["command"],
        "status": "started",
        "error": None,
    }
    started, has_results = time.perf_counter(), (folder / RESULTS_FILE).is_file()
    was_finished = has_results and read_json(folder / JOB_FILE).get("status") == "finished"
    if not was_finished:
        for path in folder.iterdir():  # what an earlier command has left unfinished
            if path.is_dir() and path.name != hydra.output_subdir:
                shutil.rmtree(path)
            elif path.is_file() and path.name not in (log_file.name, JOB_LOCK):
                path.unlink()
        write_json(folder / JOB_FILE, record)
        try:
            function(cfg, run)
        except Exception as error:
            reason, is_ours = one_line(explain(error)[0]), isinstance(error, UserError)
            write_json(folder / JOB_FILE, {**record, "status": "failed", "error": reason})
            log.error("%s", reason, exc_info=None if is_ours else error)
            where = "" if is_ours else f" (traceback in {log_file})"
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


def close_sweep(config: DictConfig) -> None:
    """Write and print the summary of a sweep. If a job has failed, the exit code is 1."""
    folder, metric = Path(config.hydra.sweep.dir).absolute(), config.sweep.metric
    summary = summarize(folder, metric, config.sweep.columns)
    resume = resume_command(config.hydra)
    write_report(summary, resume)
    print(table_text(summary), *findings(summary), sep="\n")
    print(f"sweep: {folder}\nreport: {folder / 'report.html'}", flush=True)
    if summary.failed:
        print(f"{len(summary.failed)} failed\ngo on with: {resume}", file=sys.stderr)
        raise SystemExit(1)
    if metric and not summary.best:
        raise UserError(f"sweep.metric={metric}: no job has it; expected a column of summary.csv")


def resume_command(hydra: HydraConf) -> str:
    """The command that goes on with a sweep."""
    folder = Path(hydra.sweep.dir).absolute()
    run = Run.of_command_line(hydra, folder)
    typed = run.typed_without("hydra.mode=", "hydra.sweep.dir=", "sweep.resume=")
    return command_line(["-m", *typed, override("sweep.resume", folder)])


def end_early(hydra: HydraConf) -> str | None:
    """The command that goes on with a sweep that has ended early; without any job it is removed."""
    folder = Path(hydra.sweep.dir)
    if any(folder.glob(f"*/{JOB_FILE}")):
        return resume_command(hydra)
    if {path.name for path in folder.glob("*")} <= {SWEEP_FILE, "multirun.yaml"}:  # and Hydra's
        shutil.rmtree(folder, ignore_errors=True)
    return None


# --- the summary ---------------------------------------------------------------------------------


@dataclass
class Job:
    """One job of a sweep; the first five fields are ``job.json``."""

    overrides: list[str]  # its command line
    swept: dict[str, str]  # what was typed for each key that is swept
    command: int  # the number of the sweep's last command that had this job
    status: str  # started | finished | failed
    error: str | None  # why it failed, in a line
    folder: str  # its name in the sweep's folder
    #: results.json, nested keys joined by dots; empty: it is not finished.
    results: dict[str, Any] = field(default_factory=dict)


#: Finished jobs that differ only in their seed, or a single job.
Row = list[Job]


@dataclass
class Summary:
    """The jobs of the last command of the sweep in ``folder``."""

    folder: Path
    metric: str | None  # of configs/sweep, as are the columns: a number in results.json by title
    columns: Mapping[str, str]
    jobs: list[Job]
    rows: list[Row]  # best first by the metric; equal ones are sorted by what was swept

    @property
    def failed(self) -> list[Job]:
        """The jobs that are not finished."""
        return [job for job in self.jobs if not job.results]

    @property
    def best(self) -> Row | None:
        """The first row, if it has the metric."""
        first = self.rows[0] if self.rows else []
        return None if number(first, self.metric) is None else first

    @property
    def has_seeds(self) -> bool:
        """Whether a row has several seeds."""
        return any(len(row) > 1 for row in self.rows)

    @property
    def keys(self) -> list[str]:
        """The swept keys, which tell the rows apart."""
        keys = list(self.jobs[0].swept) if self.jobs else []
        return [key for key in keys if key != "seed" or not self.has_seeds]


def summarize(folder: Path, metric: str | None, columns: Mapping[str, str]) -> Summary:
    """Rank the jobs of the last command of the sweep in ``folder``, and write ``summary.csv``.

    Jobs that differ only in their seed are one row, and the mean ranks, so that no lucky seed wins.
    """
    command, jobs = read_json(folder / SWEEP_FILE).get("command"), []
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        job = Job(**read_json(path), folder=path.parent.name)
        if job.command != command:
            continue
        if job.status == "finished":
            job.results = flatten(read_json(path.parent / RESULTS_FILE))
        jobs.append(job)
    jobs.sort(key=lambda job: [numeric_sort_key(each) for each in job.swept.values()])
    rows: dict[object, Row] = {}
    for job in jobs:
        if job.results:
            setting = tuple(text for text in job.overrides if key_of(text) != "seed")
            rows.setdefault(setting, []).append(job)

    def rank(row: Row) -> tuple[bool, float]:
        value = number(row, metric)
        return value is None, _sign(metric) * (value or 0)

    summary = Summary(folder, metric, columns, jobs, sorted(rows.values(), key=rank))
    _write_csv(summary)
    return summary


def number(row: Row, key: object, of: Callable[[list[float]], float] = mean) -> float | None:
    """The mean, or ``stdev``, of the jobs' numbers under ``key`` in results.json, if any."""
    values = [job.results.get(str(key)) for job in row]
    with suppress(StatisticsError):  # too few
        return of([value for value in values if isinstance(value, int | float)])
    return None


def of_base(key: object) -> str:
    """The key of the base's number: ``val_base.loss`` for ``val.loss``."""
    split, _, name = str(key).partition(".")
    return f"{split}_base.{name}"


def _sign(metric: str | None) -> int:
    """Times this, less of the metric is better."""
    return -1 if better_end(str(metric)) == "max" else 1


def _write_csv(summary: Summary) -> None:
    """Write summary.csv, a line a job."""
    lines = []
    for job in [*(job for row in summary.rows for job in row), *summary.failed]:
        line = {"status": job.status, **job.swept, "error": job.error, "folder": job.folder}
        lines.append(line | job.results | job.swept)
    titles = {key: None for line in lines for key in line}
    rows = [[line.get(title) for title in titles] for line in lines]
    write_csv(summary.folder / "summary.csv", titles, rows)


def findings(summary: Summary) -> list[str]:
    """The best job beside the base, and those that failed, a line each."""
    lines = []
    if best := summary.best:
        verdict = "best"
        value, base = number(best, summary.metric), number(best, of_base(summary.metric))
        if value is not None and base is not None and _sign(summary.metric) * (value - base) >= 0:
            verdict = "no job is better than the base; the nearest"
        if len(best) > 1:
            verdict += f" by the mean of {len(best)} seeds"
        lines.append(f"{verdict}: {command_line(best[0].overrides)}")
    for job in summary.failed:
        settings = " ".join(f"{key}={value}" for key, value in job.swept.items())
        error = f": {job.error}" if job.error else ""
        lines.append(f"{job.status}: {settings or job.folder}{error}")
    return lines


def table(summary: Summary) -> tuple[list[str], list[list[str]], list[str] | None]:
    """Titles, a row for each setting, and the row of the base, if all jobs share one."""
    settings = list(summary.keys)
    if summary.has_seeds:
        settings.append("seeds")
    titles, base = ["", *settings], ["base", *[""] * len(settings)]
    rows = []
    for place, row in enumerate(summary.rows, start=1):
        cells = [str(place), *(row[0].swept[key] for key in summary.keys)]
        if summary.has_seeds:
            cells.append(str(len(row)))
        rows.append(cells)
    title_of = {summary.metric: summary.metric} if summary.metric else {}
    for title, key in summary.columns.items():
        title_of[key] = title.replace("_", " ")
    for key, title in title_of.items():
        if all(number(row, key) is None for row in summary.rows):
            continue
        titles.append(title)
        of_bases = {number(row, of_base(key)) for row in summary.rows}
        base.append(_text(of_bases.pop()) if len(of_bases) == 1 else "")
        for row, cells in zip(summary.rows, rows, strict=True):
            cell, deviation = _text(number(row, key)), number(row, key, stdev)
            if key == summary.metric and deviation is not None:
                cell += f" ± {_text(deviation)}"
            cells.append(cell)
    return titles, rows, base if any(base[1:]) else None


def _text(value: float | None) -> str:
    """A number of a table."""
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:#.4g}"


def table_text(summary: Summary) -> str:
    """The table for the screen."""
    from rich.table import Table

    from lora_mnist.show.screen import rendered  # late: torch

    titles, rows, base = table(summary)
    drawn = Table()
    for title in titles:
        drawn.add_column(title, justify="right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    if base:
        drawn.add_section()
        drawn.add_row(*base)
    is_terminal = sys.stdout.isatty()
    return rendered([drawn], is_terminal, width=None if is_terminal else 200)


def write_report(summary: Summary, command: str) -> None:
    """Write ``report.html`` and ``summary.png``; ``command`` is the one that goes on."""
    from lora_mnist.show.figures import draw_sweep, save_figure  # late: matplotlib, jinja2
    from lora_mnist.show.report import write_page

    points = []
    for row in summary.rows:
        value = number(row, summary.metric)
        if value is not None:
            swept = {key: row[0].swept[key] for key in summary.keys}
            points.append((swept, value, number(row, summary.metric, stdev)))
    picture = ""
    if points and summary.keys:
        metric = f"mean {summary.metric} over seeds" if summary.has_seeds else str(summary.metric)
        picture = save_figure(draw_sweep(points, metric), summary.folder / "summary.png")
    write_page(
        summary.folder / "report.html",
        "sweep.html.j2",
        summary=summary,
        table=table(summary),
        findings=findings(summary),
        command=command,
        picture=picture,
    )
