"""Sweeps that keep books: no job lost, none run twice, none written over.

Hydra's sweeper and launcher decide which jobs run and where; any of them will do. This module opens
a sweep, new or resumed, before its first job, and closes it with a summary whichever way it ends.
It imports no torch: the process that conducts a parallel sweep needs none.
"""

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lora_mnist import interrupt
from lora_mnist.errors import described, is_full_error_wanted
from lora_mnist.files import atomic_write
from lora_mnist.run_folder import make_or_exit
from lora_mnist.summary import STUDY_FILE, summarize
from lora_mnist.sweep_folder import LOCK_FILE, STOP_FILE, SWEEP_FILE, read_commands


@dataclass
class _Sweep:
    """The sweep that this process conducts."""

    folder: Path
    entry: str
    metric: str | None
    mode: str
    overrides: list[str]
    #: Whether the sweeper looks for a best job, not knowing all of them beforehand.
    searches: bool
    lock: FileLock

    def resume_command(self) -> str:
        kept = [o for o in self.overrides if not o.startswith("sweep.resume=")]
        return command_line(self.entry, ["-m", *kept, f"sweep.resume={self.folder}"])


_FULL_ERROR = "HYDRA_FULL_ERROR"

#: What engines take from the environment alone.
_ENGINES = {
    # About the SQLAlchemy that the sweeper's optuna needs; nothing a user could act on.
    "SQLALCHEMY_SILENCE_UBER_WARNING": "1",
    # Ray would take the lines of different jobs for repetitions, and report its use to its makers.
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

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
    _conducted, code, failure = None, 0, None
    full_error = os.environ.get(_FULL_ERROR)
    with interrupt.handle_signals() as received:
        try:
            yield
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except SystemExit as exit_:
            received.recognise(exit_.code)
            if _conducted is None and not received.number:
                raise
            code = exit_.code if isinstance(exit_.code, int) else 1
        except Exception as error:
            if _conducted is None:
                raise
            code, failure = 1, error
        finally:
            os.environ.pop(_FULL_ERROR, None)
            if full_error is not None:
                os.environ[_FULL_ERROR] = full_error
        received.hold()
        if _conducted is not None:
            code = _conclude(_conducted, received, code, failure)
            if failure is not None and is_full_error_wanted() and not received.number:
                raise failure
        elif received.number:
            print(f"interrupted by {received.number.name}", file=sys.stderr, flush=True)
        if code := received.exit_code or code:
            raise SystemExit(code)


def direction(mode: str) -> str:
    """Resolver for ``hydra.sweeper.direction``: Optuna's word for ``sweep.mode``."""
    return {"max": "maximize", "min": "minimize"}.get(mode, mode)


OmegaConf.register_new_resolver("lora_mnist.direction", direction, replace=True)


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
    for name, value in _ENGINES.items():
        os.environ.setdefault(name, value)
    if OmegaConf.select(config, "hydra.sweeper.sampler.seed") is not None:
        # The sweeper would draw on from here with its generator at the start, and repeat itself.
        # The finished jobs' results fill the study again.
        (folder / STUDY_FILE).unlink(missing_ok=True)
    _share_cores(config, jobs)
    full_error = os.environ.get(_FULL_ERROR, "0")
    os.environ[_FULL_ERROR] = "1"  # what ends the sweep shall reach conduct(), not Hydra's printer
    sweep = _Sweep(
        folder=folder,
        entry=f"{config.hydra.job.name}.py",
        metric=OmegaConf.select(config, "sweep.metric"),
        mode=OmegaConf.select(config, "sweep.mode"),
        overrides=[*config.hydra.overrides.task, *_launch_overrides(config)],
        searches=OmegaConf.select(config, "hydra.sweeper.n_trials") is not None,
        lock=lock,
    )
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        # The jobs' configurations are composed anew from these.
        config.hydra.overrides.hydra = [
            *config.hydra.overrides.hydra,
            f"hydra.sweep.dir={_quoted(str(folder))}",
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quoted, fixed))}]",
            f"++hydra.job.env_set.{_FULL_ERROR}={_quoted(full_error)}",
        ]
    commands = [*read_commands(folder), command_line(sweep.entry, ["-m", *sweep.overrides])]
    with _writing(folder), atomic_write(folder / SWEEP_FILE) as path:
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
        found = sorted(path.parent for path in parent.glob(f"*/{SWEEP_FILE}"))
        if not found:
            _exit(f"sweep.resume=latest: expected a sweep in {parent}, found none")
        return found[-1]
    folder = Path(str(resume)).absolute()
    if not (folder / SWEEP_FILE).is_file():
        _exit(f"sweep.resume={resume}: no sweep; expected a folder with {SWEEP_FILE}, or latest")
    return folder


def _claim(folder: Path, resumed: bool) -> FileLock:
    """Make ``folder`` this process's own until it ends, however it ends."""
    key = "sweep.resume" if resumed else "hydra.sweep.dir"
    make_or_exit(key, folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        _exit(f"{key}={folder}: another sweep is running there; expected one at a time")
    except OSError as error:
        _exit(f"{key}={folder}: cannot be written ({error.strerror})", code=1)
    if not resumed and (folder / SWEEP_FILE).exists():
        _exit(
            f"hydra.sweep.dir={folder}: holds another sweep; "
            f"expected a new folder, or sweep.resume={folder}"
        )
    (folder / STOP_FILE).unlink(missing_ok=True)
    return lock


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


# --- closing a sweep -----------------------------------------------------------------------------


def _conclude(
    sweep: _Sweep, received: interrupt.Interrupt, code: int, failure: Exception | None
) -> int:
    """Write and print the summary; the process's exit code."""
    received.hold()
    try:
        with _writing(sweep.folder):
            summary = summarize(sweep.folder, sweep.metric, sweep.mode, sweep.entry)
    finally:
        sweep.lock.release()
        if "ray" in sys.modules:
            # It would end its daemons later, when a further signal could cut that off.
            sys.modules["ray"].shutdown()
    print(summary.text, flush=True)
    now = len(read_commands(sweep.folder))
    unfinished = [row for row in summary.rows if row.status != "finished" and row.command == now]
    failed = sum(row.status == "failed" for row in unfinished)
    finished = sum(row.status == "finished" for row in summary.rows)
    problems = [f"{failed} failed"] if failed else []
    # A search without a finished job has no best one, which Hydra's sweeper takes for an error.
    if failure is not None and not (sweep.searches and failed and not finished):
        problems.append(described(failure))
    if received.number:
        problems = [f"interrupted by {received.number.name}"]
    elif not problems and (code or unfinished):
        problems = ["not all jobs ran"]
    if summary.unwritten:
        problems.append(summary.unwritten)
    if not problems:
        if summary.complaint:
            _exit(summary.complaint)
        return 0
    go_on = f"go on with: {sweep.resume_command()}"
    print(f"{', '.join(problems)}; {go_on}", file=sys.stderr, flush=True)
    return received.exit_code or code or 1
