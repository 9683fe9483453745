"""Ends a command: prints its last lines, sets the exit code, and removes an empty folder."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from lora_mnist.cli.explain import explain
from lora_mnist.cli.sweep import close_interrupted_sweep
from lora_mnist.config.run import Run, quote_for_hydra
from lora_mnist.errors import UserError
from lora_mnist.project import format_command
from lora_mnist.run_paths import LAST_CHECKPOINT, list_finished


class PastHydra(BaseException):
    """Carries an error past Hydra, which prints a task's error and only warns of a callback's."""


def exit_for(error: BaseException, signals: list[int], hydra_conf: Any) -> BaseException:
    """Print the last lines of a command that failed or was stopped, and return its exit.

    ``hydra_conf`` is Hydra's own configuration, or None if the command has no folder yet.
    """
    if signals or isinstance(error, KeyboardInterrupt):  # first: Lightning makes a SystemExit of it
        sent = signal.Signals(signals[0] if signals else signal.SIGINT)
        left = _describe_finished_jobs(hydra_conf) or _suggest_command(hydra_conf)
        return _print_exit(f"interrupted by {sent.name}", left, 128 + sent)
    if isinstance(error, SystemExit):  # as after --help, or a sweep with failed jobs
        return error
    if isinstance(error, BrokenPipeError):
        try:
            print(flush=True)
        except BrokenPipeError:  # | head; else the pipe was another
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
            return SystemExit(128 + 13)  # as by SIGPIPE
    reason, code = explain(error), getattr(error, "exit_code", UserError.exit_code)
    if reason is None:
        if left := _describe_finished_jobs(hydra_conf) or _suggest_command(hydra_conf, is_bug=True):
            error.add_note(left)
        return error  # Python prints the traceback
    if code == UserError.exit_code:
        _remove_if_empty(hydra_conf)
    return _print_exit(reason, _describe_finished_jobs(hydra_conf), code)


def _print_exit(reason: str, left: str, code: int) -> SystemExit:
    """Print why a command ends, and what comes next; return the SystemExit."""
    print(f"{reason}\n{left}".rstrip(), file=sys.stderr)
    return SystemExit(code)


def _describe_finished_jobs(hydra_conf: Any) -> str:
    """Return a line about the finished jobs of a sweep, or "" if this is no sweep."""
    is_sweep = hydra_conf is not None and hydra_conf.mode == RunMode.MULTIRUN
    return close_interrupted_sweep(Path(hydra_conf.sweep.dir)) if is_sweep else ""


def _run_folder(hydra_conf: Any) -> Path | None:
    """Return the folder of the run, or None if the run has none of its own."""
    # Without a subfolder of Hydra's the folder is the user's, or another process has made it.
    if hydra_conf is None or hydra_conf.mode != RunMode.RUN or hydra_conf.output_subdir is None:
        return None
    return Path(hydra_conf.run.dir).absolute()


def _remove_if_empty(hydra_conf: Any) -> None:
    """Remove the folder of a run that has written nothing into it."""
    folder = _run_folder(hydra_conf)
    if folder is None:
        return
    of_hydra = {hydra_conf.output_subdir, f"{hydra_conf.job.name}.log"}
    if {path.name for path in folder.glob("*")} <= of_hydra:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in folder.parents:  # outputs/eval, where there is no other run
            if Path.cwd() in parent.parents:
                with suppress(OSError):  # it is not empty
                    parent.rmdir()


def _suggest_command(hydra_conf: Any, is_bug: bool = False) -> str:
    """Return the command that resumes or restarts a run, or the path of its log."""
    folder = _run_folder(hydra_conf)
    if folder is None:
        return ""
    last, run = folder / LAST_CHECKPOINT, Run.from_hydra(hydra_conf, folder)
    how, dropped = "start again with", ["hydra.run.dir", "hydra.mode"]
    if is_resumable := last.is_file() or bool(list_finished(folder)):
        how, dropped = "go on with", [*dropped, "ckpt_path"]
    overrides = run.overrides_without(*dropped)
    if is_resumable:
        path = last if last.is_file() else folder  # several trainings have no checkpoint
        overrides.append(f"ckpt_path={quote_for_hydra(path)}")
    elif is_bug:
        return f"log: {folder / hydra_conf.job.name}.log"
    return f"{how}: {format_command(str(hydra_conf.job.config_name), overrides)}"
