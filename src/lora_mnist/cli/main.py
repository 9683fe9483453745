"""The part that the five entries share: a command goes in, Hydra runs it, an exit code comes out.

Nothing here imports torch at once, so that ``--help`` need not wait.
"""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.cli.arguments import give_to_hydra
from lora_mnist.cli.explain import explain, no_stage
from lora_mnist.cli.sweep import close_sweep, end_early, open_sweep, run_job
from lora_mnist.config.command import Command, Run, in_grammar
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import CONFIGS, command_line
from lora_mnist.run_paths import LAST_CHECKPOINT, refuse_used_folder

log = logging.getLogger(__name__)

#: Those that end a command.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Passing(BaseException):
    """Carries an error through Hydra, which makes a line or a warning of an Exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def run_entry(function: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``.

    A refusal, or a signal, is told in a line, with the exit code that fits; any other error is
    raised, for Python to show where.
    """
    signals: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """End the command at a signal, as Lightning then ends the processes that it has started."""
        signals.append(number)
        raise KeyboardInterrupt

    def task(cfg: DictConfig) -> float | None:
        conf, metric = HydraConfig.get(), None
        run = Run.of_command_line(conf, Path(conf.runtime.output_dir))
        try:
            if run.is_sweep and "sweep" in cfg:
                metric = run_job(function, cfg, run, conf)
            else:
                function(cfg, run)
        except Exception as error:
            reason = explain(error)
            log.error("%s", reason or one_line(error), exc_info=reason is None)
            raise _Passing(error) from None
        if signals:  # in a __del__, where Python ignores what is raised
            raise KeyboardInterrupt
        return metric

    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        # With this, Hydra raises its errors instead of printing them and exiting with 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            give_to_hydra(config_name)
            main()
            sys.stdout.flush()
        return
    except BaseException as raised:
        error = raised.error if isinstance(raised, _Passing) else raised
    raise _end_of(error, signals)


def _end_of(error: BaseException, signals: list[int]) -> BaseException:
    """The end of a command by this error, or by a signal, after the lines that say why."""
    reason, code = explain(error), getattr(error, "exit_code", UserError.exit_code)
    if signals or isinstance(error, KeyboardInterrupt):  # Lightning makes a SystemExit of a signal
        sent = signal.Signals(signals[0] if signals else signal.SIGINT)
        reason, code = f"interrupted by {sent.name}", 128 + sent
    elif isinstance(error, SystemExit):
        return error
    elif isinstance(error, BrokenPipeError) and not sys.stdout.isatty():  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return SystemExit(128 + 13)  # as by SIGPIPE
    conf, more = _hydra(), ""
    if conf is not None and conf.mode == RunMode.MULTIRUN:
        more = end_early(Path(conf.sweep.dir))
    elif conf is not None:
        if reason is not None and code == UserError.exit_code:
            _remove_if_empty(conf)
        if reason is None or code > UserError.exit_code:  # a bug, or a signal
            more = _what_next(conf, is_bug=reason is None)
    if reason is None:
        if more:
            error.add_note(more)
        return error
    print(f"{reason}\n{more}".rstrip(), file=sys.stderr)
    return SystemExit(code)


def _hydra() -> Any:
    """Hydra's own configuration; ``None`` where no folder is this command's to end."""
    if not HydraConfig.initialized():
        return None
    conf = HydraConfig.get()
    # Without a subfolder of Hydra's the folder is the user's, or another process has made it.
    is_ours = conf.mode == RunMode.MULTIRUN or conf.output_subdir is not None
    return conf if is_ours else None


def _remove_if_empty(conf: Any) -> None:
    """Remove the folder of a run that has written nothing into it."""
    folder = Path(conf.run.dir)
    if {path.name for path in folder.glob("*")} <= {conf.output_subdir, f"{conf.job.name}.log"}:
        shutil.rmtree(folder, ignore_errors=True)


def _what_next(conf: Any, is_bug: bool) -> str:
    """How to go on from a run's last checkpoint; else where its log is, or how to start again."""
    folder = Path(conf.run.dir).absolute()
    last, run = folder / LAST_CHECKPOINT, Run.of_command_line(conf, folder)
    how, left_out = "start again with", ["hydra.run.dir", "hydra.mode"]
    if last.is_file():  # several trainings have none
        how, left_out = "go on with", [*left_out, "ckpt_path"]
    elif is_bug:
        return f"log: {folder / conf.job.name}.log"
    typed = run.typed_without(*left_out)
    if last.is_file():
        typed.append(f"ckpt_path={in_grammar(last)}")
    return f"{how}: {command_line(str(conf.job.config_name), typed)}"


class ClaimOutputFolder(Callback):
    """Hydra callback: claims the folder of a run, or of a sweep, which it also opens and closes."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``."""
        with _in_callback(config):
            _refuse_start(config)
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is None:  # of processes that Lightning starts
                return
            refuse_used_folder("hydra.run.dir", folder, subfolder, f"{config.hydra.job.name}.log")
            # If two runs start at once, the second fails here.
            (folder / subfolder).mkdir(parents=True)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; where an entry keeps no results, Hydra runs its jobs alone."""
        with _in_callback(config):
            _refuse_start(config)
            if "sweep" in config:
                open_sweep(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the sweep with its summary."""
        with _in_callback(config):
            if "sweep" in config:
                close_sweep(config)


@contextmanager
def _in_callback(config: DictConfig) -> Iterator[None]:
    """Inside the ``with`` block of a callback, an error ends the command, and touches no folder."""
    try:
        HydraConfig.instance().set_config(config)  # as Hydra does next, for ${hydra:...}
        yield
    except Exception as error:
        HydraConfig.instance().cfg = None  # the folder is somebody else's, or finished
        raise _Passing(error) from None


def _refuse_start(config: DictConfig) -> None:
    """Refuse a command without a stage, and a file in place of a folder."""
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    swept = {*(OmegaConf.select(config, "hydra.sweeper.params") or {})}
    for each in OverridesParser.create().parse_overrides(typed):
        if each.is_sweep_override():
            swept.add(each.key_or_group)
    if OmegaConf.is_missing(config, "stage") and not swept & {"stage", "experiment"}:
        raise UserError(no_stage())
    for key in ("outputs", "bases"):
        if Path(str(config.paths[key])).is_file():
            raise UserError(f"paths.{key}={config.paths[key]}: expected a folder, not a file")
