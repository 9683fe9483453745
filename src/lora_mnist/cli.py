"""The part that the five entries share: a command goes in, Hydra runs it, an exit code comes out.

Whatever goes wrong is said in one line on standard error, and ``HYDRA_FULL_ERROR=1`` brings the
traceback, as ever in Hydra. Nothing here imports torch at once, so that ``--help`` need not wait.
"""

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

from lora_mnist.disk.numbers import flatten
from lora_mnist.disk.run_paths import LAST_CHECKPOINT, refuse_used_folder, run_folder
from lora_mnist.errors import UserError, error_in_user_code, one_line
from lora_mnist.project import CONFIGS, command_line, program
from lora_mnist.run import CLASSIFIER, Run, override
from lora_mnist.sweep.session import (
    end_early,
    open_sweep,
    resume_command,
    run_swept,
    swept_keys,
)

log = logging.getLogger(__name__)

Command = Callable[[DictConfig, Run], object]

_FULL_ERROR = "HYDRA_FULL_ERROR"


class Interrupt:
    """SIGINT and SIGTERM while a command runs: the first one ends it and decides its exit code.

    Lightning and Gradio may swallow the ``KeyboardInterrupt`` that is raised.
    """

    first: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        self.first = self.first or signal.Signals(number)
        raise KeyboardInterrupt  # at which Lightning also ends the processes that it has started

    def explain(self) -> tuple[str, int]:
        """The line to print about the signal, and the exit code that belongs to it."""
        number = self.first or signal.SIGINT
        return f"interrupted by {number.name}", 128 + number


def run_entry(function: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``, and end the process with the exit code that fits.

    In ``sys.argv``, names of files with ``=`` are quoted for Hydra, and ``classifier=`` has Hydra's
    longer name; there for other processes, too.

    Args:
        function: the command; it is called with a configuration and the run, in a sweep once a job.
        config_name: its file in ``configs``.
    """
    for number, text in enumerate(sys.argv):
        key, _, value = text.partition("=")
        if key == "classifier":
            sys.argv[number] = f"{CLASSIFIER}={value}"
        elif "=" in value and re.fullmatch(r"[\w/.~= -]+", value) and not key.startswith("-"):
            sys.argv[number] = override(key, value)  # a file such as epoch=3-step=10.ckpt
    shows_traceback = os.environ.get(_FULL_ERROR) == "1"
    interrupt = Interrupt()

    def task(cfg: DictConfig) -> float | None:
        return run_command(function, cfg, interrupt, shows_traceback)

    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    handlers = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    error: Exception | None = None
    reason: str | None = None
    code = 0
    try:
        # Hydra then raises what it would print, and exit with 1.
        with env_override({_FULL_ERROR: "1"}):
            main()
    except KeyboardInterrupt:
        reason, code = interrupt.explain()
    except Exception as exception:
        error = exception
        reason, code = explain(error)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    if reason is not None and not (error and shows_traceback):
        print(reason, file=sys.stderr)
    if reason is not None and HydraConfig.initialized():
        command = end_early(HydraConfig.get())
        if command is not None:
            print(f"go on with: {command}", file=sys.stderr)
    if error is not None and shows_traceback:
        raise error
    if code:
        raise SystemExit(code)


def run_command(
    function: Command, cfg: DictConfig, interrupt: Interrupt, shows_traceback: bool
) -> float | None:
    """Call a command's function with its configuration and the folder that Hydra has made for it.

    Returns:
        In a sweep the value of ``sweep.metric``, for sweepers that search.

    Raises:
        SystemExit: with the exit code, where a single run has failed, after its reason was printed.
    """
    settings = HydraConfig.get()
    run = Run.of_command_line(settings, Path(settings.runtime.output_dir))

    def call(cfg: DictConfig, run: Run) -> None:
        try:
            function(cfg, run)
        except SystemExit as error:  # Lightning makes it of an interrupt
            if not interrupt.first:
                raise RuntimeError(f"sys.exit({error.code!r}) was called before the end") from error
        except Exception:
            if not interrupt.first:
                raise
        if interrupt.first:
            raise KeyboardInterrupt

    if run.is_sweep and "sweep" in cfg:
        return run_swept(call, cfg, run, settings, explain)
    if run.is_sweep:
        call(cfg, run)
        return None
    is_user_error = False
    try:
        # As the user has set it, for the processes that Lightning starts.
        with env_override({_FULL_ERROR: str(int(shows_traceback))}):
            call(cfg, run)
        return None
    except KeyboardInterrupt:
        reason, code = interrupt.explain()
    except Exception as error:
        reason, code = explain(error)
        is_user_error = isinstance(error, UserError)
        log.error("%s", reason, exc_info=None if is_user_error else error)  # to the run's own log
        if shows_traceback:
            raise
        if code == 1 and not is_user_error:
            reason += f" ({_FULL_ERROR}=1 shows where)"
    print(reason, file=sys.stderr)
    if not is_user_error and (run.folder / LAST_CHECKPOINT).is_file():
        again = run.typed_without("resume=", "hydra.run.dir=", "hydra.mode=")
        command = command_line([*again, override("resume", run.folder)])
        print(f"go on with: {command}", file=sys.stderr)
    elif interrupt.first and "resume" in cfg:
        print("no checkpoint was written yet: there is nothing to go on with", file=sys.stderr)
    # Without a subfolder of Hydra's the folder is the user's, or another command has made it.
    if code == UserError.exit_code and settings.output_subdir is not None:
        files = {path.name for path in run.folder.iterdir()}
        if files <= {settings.output_subdir, f"{settings.job.name}.log"}:
            shutil.rmtree(run.folder, ignore_errors=True)  # a mistake leaves nothing behind
    raise SystemExit(code)


# --- what went wrong, in a line ------------------------------------------------------------------


def _no_stage() -> str:
    train = program("train")
    return (
        "stage: missing; expected one of\n"
        f"  {train} stage=pretrain         to train a base\n"
        f"  {train} stage=lora digit=9     to repair it with an adapter"
    )


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print about an exception, and the exit code that belongs to it.

    Whoever has raised it is quoted: Hydra, OmegaConf, Lightning, torch, Python.
    """
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if line := error_in_user_code(error):
        return line, 1
    # Hydra says which override was wrong, and OmegaConf, its cause, why.
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        if OmegaConf.is_missing(cause.parent_node, "stage"):
            return _no_stage(), UserError.exit_code  # which keys there are depends on it
        nearest = _nearest(str(cause.full_key), cause.parent_node)
        return f"{cause.full_key}: nothing reads this key; {nearest}", UserError.exit_code
    if isinstance(cause, OmegaConfBaseException):
        reason, _, _ = str(cause).partition("\n    full_key:")  # the rest is for programmers
        _, _, resolvers = reason.partition(" raised while resolving interpolation: ")
        return one_line(resolvers or f"{cause.full_key}: {reason}"), UserError.exit_code
    if isinstance(error, OverrideParseException):
        quotes = "expected quotes, 'key=\"value\"', around unusual signs"
        return f"{error.override}: {one_line(error)}; {quotes}", UserError.exit_code
    if isinstance(error, HydraException):
        reason = one_line(str(error).partition("Config search path:")[0])
        if "hydra/launcher" in reason or "hydra/sweeper" in reason:
            reason += '; others: pip install "lora-mnist[sweep]", or [ray], or [slurm]'
        if "config group 'classifier' does not exist" in reason:
            reason = (
                "classifier: expected --config-dir FOLDER, with your file in it: "
                "FOLDER/classifier/NAME.yaml"
            )
        key = re.match(r"Could not override '(\w+)'. No match", reason)
        if key and Path(key[1]).is_dir():  # predict.py --config-dir . images=images/cat.png
            reason = (
                f"{key[1]}: with --config-dir, Hydra takes the folder {key[1]} that is here for a "
                "group of settings; expected another name for it, or --config-dir FOLDER with "
                "nothing but FOLDER/classifier"
            )
        return reason, UserError.exit_code
    # Lightning's own name for a wrong value; Lightning is not imported here.
    if isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException":
        return one_line(error), UserError.exit_code
    code = UserError.exit_code if isinstance(error, TypeError) else 1  # for an unknown argument
    return f"{type(error).__name__}: {one_line(error)}", code


def _nearest(key: str, parent: Any) -> str:
    """The keys in ``parent`` that may be meant by ``key``, which is not in it, for a message."""
    group, _, name = key.rpartition(".")
    keys = list(flatten(OmegaConf.to_container(parent), into=dict))
    nearest = [each for each in keys if each.rpartition(".")[2] == name]
    nearest = nearest or get_close_matches(name, [*map(str, parent), *keys], n=3)
    if not nearest:
        return f"expected one of {', '.join(sorted(map(str, parent)))}"
    return f"the nearest: {', '.join(f'{group}.{each}'.lstrip('.') for each in nearest)}"


# --- folders -------------------------------------------------------------------------------------

# hydra.run.dir; cached, so that latest is the same run whenever it is asked for.
OmegaConf.register_new_resolver("lora_mnist.run_folder", run_folder, use_cache=True, replace=True)


class ClaimOutputFolder(Callback):
    """Hydra callback: claims the folder of a run, or of a sweep.

    Hydra turns every other exception of a callback into a warning. So ``SystemExit`` ends the
    command here, after its reason has been printed.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``.

        A run that goes on has its folder, and so have the processes that Lightning starts: both
        have ``hydra.output_subdir=null``.
        """
        HydraConfig.instance().set_config(config)  # Hydra does so next; ${hydra:...} needs it here
        try:
            if OmegaConf.is_missing(config, "stage"):
                raise UserError(_no_stage())
            _refuse_other_directory(config)
            resume = OmegaConf.select(config, "sweep.resume")
            if resume is not None:
                raise UserError(f"sweep.resume={resume}: expected a sweep; start it with -m")
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is not None:
                log_file = folder / f"{config.hydra.job.name}.log"
                if (folder / subfolder).exists() or log_file.exists():
                    raise UserError(
                        f"hydra.run.dir={folder}: holds another run; expected a new folder"
                    )
                refuse_used_folder("hydra.run.dir", folder)
                # If two runs start at once, the second fails here.
                (folder / subfolder).mkdir(parents=True)
        except Exception as error:
            _refuse(error)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; where an entry keeps no results, Hydra runs its jobs alone."""
        HydraConfig.instance().set_config(config)
        try:
            keys = swept_keys(config)
            is_set = keys.get("stage") or keys.get("experiment")  # it may be swept
            if OmegaConf.is_missing(config, "stage") and not is_set:
                raise UserError(_no_stage())
            _refuse_other_directory(config)
            if "sweep" in config:
                open_sweep(config)
        except Exception as error:
            _refuse(error)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the summary of the sweep. If a job has failed, the exit code is 1."""
        if "sweep" not in config:
            return
        from lora_mnist.show.sweep_report import make_sweep_report  # late: jinja2, matplotlib
        from lora_mnist.sweep.summary import findings, summarize, table_text

        try:
            folder, metric = Path(config.hydra.sweep.dir).absolute(), config.sweep.metric
            summary = summarize(folder, metric, config.sweep.columns)
            lines = [table_text(summary), *findings(summary), f"sweep: {folder}"]
            lines += make_sweep_report(summary, resume_command(config.hydra))
            print(*lines, f"report: {folder / 'report.html'}", sep="\n", flush=True)
            if summary.failed:
                print(f"{len(summary.failed)} failed", file=sys.stderr)
                print(f"go on with: {resume_command(config.hydra)}", file=sys.stderr)
                raise SystemExit(1)
            if metric and not summary.best:
                results = summary.finished[0].jobs[0].results
                names = [key for key in results if key.startswith("val.") and not key[-1].isdigit()]
                expected = ", ".join(names) or "data.val_size > 0"
                raise UserError(
                    f"sweep.metric={metric}: no job has it; expected {expected}, or null"
                )
        except Exception as error:
            _refuse(error)


def _refuse_other_directory(config: DictConfig) -> None:
    if config.hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true: expected false; paths are relative to where you stand"
        )


def _refuse(error: Exception) -> NoReturn:
    reason, code = explain(error)
    print(reason, file=sys.stderr)
    raise SystemExit(code)
