"""The part that the five entries share: a command goes in, Hydra runs it, an exit code comes out.

Nothing here imports torch at once, so that ``--help`` need not wait.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig

from lora_mnist.cli.arguments import give_to_hydra
from lora_mnist.cli.explain import explain
from lora_mnist.cli.folder import Passing, finished_jobs, how_to_go_on, remove_if_empty
from lora_mnist.cli.sweep import run_job
from lora_mnist.config.command import Command, Run
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import CONFIGS

log = logging.getLogger(__name__)

#: Those that end a command.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_entry(function: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``, and end it as :func:`_end_of` says."""
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
            reason = explain(error)  # for the run's log, which ends with the task
            log.error("%s", reason or one_line(error), exc_info=reason is None)
            raise Passing(error) from None
        if signals:  # in a __del__, where Python ignores what is raised
            raise KeyboardInterrupt
        return metric

    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        # With this, Hydra raises its errors instead of printing them and exiting with 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            give_to_hydra()
            main()
            sys.stdout.flush()
        return
    except Passing as passing:
        error: BaseException = passing.error
    except BaseException as raised:
        error = raised
    raise _end_of(error, signals)  # here, or its traceback would begin with what carried it


def _end_of(error: BaseException, signals: list[int]) -> BaseException:
    """How a command ends, case by case: its last lines are printed, and its end is returned."""
    if signals or isinstance(error, KeyboardInterrupt):  # first: Lightning makes a SystemExit of it
        sent = signal.Signals(signals[0] if signals else signal.SIGINT)
        left = finished_jobs() or how_to_go_on()
        return _told(f"interrupted by {sent.name}", left, 128 + sent)
    if isinstance(error, SystemExit):  # as after --help, or a sweep with failed jobs
        return error
    if isinstance(error, BrokenPipeError) and not sys.stdout.isatty():  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return SystemExit(128 + 13)  # as by SIGPIPE
    reason, code = explain(error), getattr(error, "exit_code", UserError.exit_code)
    if reason is not None:
        if code == UserError.exit_code:
            remove_if_empty()
        return _told(reason, finished_jobs(), code)
    if left := finished_jobs() or how_to_go_on(is_bug=True):
        error.add_note(left)
    return error  # Python shows where


def _told(reason: str, left: str, code: int) -> SystemExit:
    """Print why a command ends and what it leaves; return its end."""
    print(f"{reason}\n{left}".rstrip(), file=sys.stderr)
    return SystemExit(code)
