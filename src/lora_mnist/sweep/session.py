"""A sweep from its first to its last line: its folder claimed, its end summarised.

Hydra's sweeper and launcher decide which jobs run and where; any of them will do. This module opens
a sweep, new or resumed, before its first job, and closes it with a summary, however it ends. It
imports no torch: the process that conducts a parallel sweep needs none.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.errors import UserError, bad_value, described, is_full_error_wanted
from lora_mnist.sweep import interrupt
from lora_mnist.sweep.command import (
    Ranking,
    command_line,
    entry_script,
    is_search,
    launch_overrides,
    override,
    quoted,
    read_grid,
    read_ranking,
)
from lora_mnist.sweep.folder import (
    claim,
    forget_command,
    read_commands,
    resumed_folder,
    write_commands,
)
from lora_mnist.sweep.plugins import prepare_environment, require_plugins
from lora_mnist.sweep.screen import say
from lora_mnist.sweep.summary import STUDY_FILE, summarize

_FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass(frozen=True)
class _Sweep:
    """The sweep that this process conducts.

    Attributes:
        folder: of the sweep.
        entry: the script, as the command named it.
        ranking: how its jobs are ranked.
        overrides: of the command, those for Hydra included.
        is_search: whether the sweeper looks for a best job.
        lock: keeps other sweeps out of the folder.
    """

    folder: Path
    entry: str
    ranking: Ranking
    overrides: list[str]
    is_search: bool
    lock: FileLock

    def resume_command(self) -> str:
        kept = [o for o in self.overrides if not o.startswith("sweep.resume=")]
        return command_line(self.entry, ["-m", *kept, override("sweep.resume", self.folder)])


#: Hydra makes the callback and offers no way from it to :func:`conduct`. ``None`` in the workers of
#: a parallel launcher, and where no sweep runs.
_conducted: _Sweep | None = None


class SweepCallback(Callback):
    """Hydra callback: opens a sweep before its first job."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse to resume a single run."""
        if OmegaConf.select(config, "sweep.resume") is not None:
            _exit(f"sweep.resume={config.sweep.resume}: expected a sweep; start it with -m")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the sweep's folder, new or resumed, and prepare what its jobs will share.

        An entry without ``sweep`` in its configuration keeps no results; Hydra runs its jobs alone.
        """
        global _conducted
        try:
            require_plugins(config)
            if OmegaConf.select(config, "sweep") is not None:
                _conducted = _open_sweep(config)
        except UserError as error:
            _exit(str(error), error.exit_code)
        except CompactHydraException as error:
            _exit(str(error), code=1)
        except OmegaConfBaseException as error:
            _exit(str(bad_value(error)))
        except Exception as error:  # Hydra would only warn of it
            traceback.print_exc()
            raise SystemExit(1) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Drop a job's configuration, which Hydra would keep to the end: a third of a megabyte."""
        job_return.cfg = job_return.hydra_cfg = None


@contextmanager
def conduct() -> Iterator[None]:
    """Around Hydra's main: however a sweep ends, write its summary and set the exit code.

    The code is 0 if every job finished, 1 if one failed, 2 for a mistake in the command, and 130 or
    143 after an interrupt, of a single run too.
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
            go_on = f"; go on with: {received.go_on}" if received.go_on else ""
            say(f"interrupted by {received.number.name}{go_on}", to_stderr=True)
        if code := received.exit_code or code:
            raise SystemExit(code)


def direction(mode: str) -> str:
    """Resolver for ``hydra.sweeper.direction``: Optuna's word for ``sweep.mode``."""
    return {"max": "maximize", "min": "minimize"}.get(mode, mode)


OmegaConf.register_new_resolver("lora_mnist.direction", direction, replace=True)


def _exit(message: str, code: int = 2) -> NoReturn:
    say(message, to_stderr=True)
    raise SystemExit(code)


# --- opening a sweep -----------------------------------------------------------------------------


def _open_sweep(config: DictConfig) -> _Sweep:
    HydraConfig.instance().set_config(config)  # Hydra does so later; ${hydra:...} needs it here
    ranking = read_ranking(config)
    fixed, jobs = read_grid(config)
    resumed = resumed_folder(config)
    folder = resumed or Path(config.hydra.sweep.dir).absolute()
    with _writing(folder):
        lock = claim(folder, resumed is not None)
    if OmegaConf.select(config, "hydra.sweeper.sampler.seed") is not None:
        # With its generator at the start again, the sweeper would repeat what the study has.
        # A new study is filled by the results of the finished jobs.
        (folder / STUDY_FILE).unlink(missing_ok=True)
    prepare_environment(config, jobs)
    full_error = os.environ.get(_FULL_ERROR, "0")
    os.environ[_FULL_ERROR] = "1"  # what ends the sweep must reach conduct(), not Hydra's printer
    sweep = _Sweep(
        folder=folder,
        entry=entry_script(config.hydra.job.name),
        ranking=ranking,
        overrides=[*config.hydra.overrides.task, *launch_overrides(config)],
        is_search=is_search(config),
        lock=lock,
    )
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        # Hydra composes the jobs' configurations anew from these.
        config.hydra.overrides.hydra = [
            *config.hydra.overrides.hydra,
            f"hydra.sweep.dir={quoted(str(folder))}",
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, fixed))}]",
            f"++hydra.job.env_set.{_FULL_ERROR}={quoted(full_error)}",
        ]
    command = command_line(sweep.entry, ["-m", *sweep.overrides])
    with _writing(folder):
        write_commands(folder, [*read_commands(folder), command])
    return sweep


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _exit(f"{folder}: cannot be written ({error.strerror})", code=1)


# --- closing a sweep -----------------------------------------------------------------------------


def _conclude(
    sweep: _Sweep, received: interrupt.Interrupt, code: int, failure: Exception | None
) -> int:
    """Write and print the summary; the process's exit code."""
    ranking = sweep.ranking
    try:
        with _writing(sweep.folder):
            summary = summarize(
                sweep.folder,
                ranking.metric,
                ranking.mode,
                ranking.columns,
                sweep.entry,
                ranking.metrics,
                ranking.start,
            )
    finally:
        sweep.lock.release()
        if "ray" in sys.modules:
            # It would end its daemons later, when a further signal could cut that off.
            sys.modules["ray"].shutdown()
    now = len(read_commands(sweep.folder))
    started = any(row.command == now for row in summary.rows)
    if isinstance(failure, CompactHydraException) and not started:
        forget_command(sweep.folder)
        say(described(failure), to_stderr=True)
        return code
    say(summary.text)
    unfinished = [
        row for row in summary.rows if row.status != "finished" and row.command in (now, None)
    ]
    counts = {
        status: sum(row.status == status for row in unfinished) for status in ("failed", "damaged")
    }
    finished = any(row.status == "finished" for row in summary.rows)
    problems = [f"{count} {status}" for status, count in counts.items() if count]
    # A search without a finished job has no best one, which Hydra's sweeper takes for an error.
    if failure is not None and not (sweep.is_search and counts["failed"] and not finished):
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
    say(f"{', '.join(problems)}; go on with: {sweep.resume_command()}", to_stderr=True)
    return received.exit_code or code or 1
