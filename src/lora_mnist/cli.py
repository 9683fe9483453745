"""What the six entries share: Hydra's ``main`` goes in, an exit code comes out.

Whatever goes wrong is told in one line on standard error, and ``HYDRA_FULL_ERROR=1`` brings the
traceback, as ever in Hydra. Nothing here imports torch, so that ``--help`` answers at once.
"""

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lora_mnist.disk.numbers import flatten
from lora_mnist.disk.run_paths import LAST_CHECKPOINT, RUN_RECORD, latest
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import CONFIGS, Run, command_line, override, program
from lora_mnist.sweep.session import (
    close_sweep,
    is_conducting,
    open_sweep,
    run_swept,
    swept_keys,
)

log = logging.getLogger(__name__)

_FULL_ERROR = "HYDRA_FULL_ERROR"
#: Signals received so far. Lightning and other code may swallow the interrupt; the first signal
#: decides the exit code.
_signals: list[signal.Signals] = []
#: The folder that this command has made for its run; ``None`` if it was there before.
_new_folder: Path | None = None
#: HYDRA_FULL_ERROR as the user has set it.
_full_error = "0"


def run_entry(main: Callable[[], object]) -> None:
    """Run an entry's ``main``, and end the process with the exit code that fits."""
    global _full_error
    _signals.clear()
    _full_error = os.environ.get(_FULL_ERROR, "0")
    for number, text in enumerate(sys.argv):
        key, _, value = text.partition("=")
        if "=" in value and re.fullmatch(r"[\w/.~= -]+", value) and not key.startswith("-"):
            sys.argv[number] = override(key, value)  # a file such as epoch=3-step=10.ckpt
    handlers = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    raised: BaseException | None = None
    try:
        with env_override({_FULL_ERROR: "1"}):  # so that Hydra raises what it would print
            main()
    except BaseException as exception:
        raised = exception
    for number, handler in handlers.items():
        signal.signal(number, handler)
    error, code, reason = raised, 0, None
    if isinstance(raised, SystemExit):  # argparse's, Lightning's, or ours, caused by the error
        error, code = raised.__cause__, raised.code if isinstance(raised.code, int) else 0
    if _signals:
        reason, code = f"interrupted by {_signals[0].name}", 128 + _signals[0]
    elif error is not None:
        reason, code = explain(error)
    shows_traceback = _full_error == "1" and not _signals
    if is_conducting():
        from lora_mnist.show.report import make_sweep_report  # late: jinja2, matplotlib

        code, sweep = close_sweep(reason, code)
        if sweep is not None:
            print(*make_sweep_report(sweep), f"report: {sweep / 'report.html'}", sep="\n")
    elif reason is not None and not shows_traceback:
        if code == 1 and not isinstance(error, UserError):
            reason += f" ({_FULL_ERROR}=1 shows where)"
        print(reason, *getattr(raised, "__notes__", ()), sep="\n", file=sys.stderr)
    if error is not None and shows_traceback:
        raise error
    if code:
        raise SystemExit(code)


def _note(number: int, frame: FrameType | None) -> None:
    _signals.append(signal.Signals(number))
    raise KeyboardInterrupt  # at which Lightning also ends the processes that it has started


def run_command(function: Callable[[DictConfig, Run], object], cfg: DictConfig) -> float | None:
    """Call a command's function with its configuration and the folder that Hydra has made for it.

    In a sweep the value of ``sweep.metric`` is returned, for sweepers that search.
    """
    hydra = HydraConfig.get()
    run = Run.of_command_line(hydra, Path(hydra.runtime.output_dir))
    if run.is_sweep and "sweep" in cfg:
        value = run_swept(partial(_call, function), cfg, run, hydra, explain)
        if _signals:  # the job has swallowed the interrupt
            raise KeyboardInterrupt
        return value
    try:
        with env_override({_FULL_ERROR: _full_error}):
            _call(function, cfg, run)
    except BaseException as error:
        ended = SystemExit() if isinstance(error, Exception) else error
        can_go_on = (run.folder / LAST_CHECKPOINT).is_file()
        if can_go_on and not isinstance(error, UserError):
            again = run.typed_without("resume=", "hydra.run.dir=", "hydra.mode=")
            again.append(override("resume", run.folder))
            ended.add_note(f"go on with: {command_line(again)}")
        elif _signals and "resume" in cfg:
            ended.add_note("no checkpoint was written yet: there is nothing to go on with")
        if ended is error:
            raise
        traceback = None if isinstance(error, UserError) else error
        reason, code = explain(error)
        log.error("%s", reason, exc_info=traceback)  # to the run's own log
        if code == UserError.exit_code and traceback is None and run.folder == _new_folder:
            files = {path.name for path in run.folder.iterdir()}
            if files <= {".hydra", f"{hydra.job.name}.log"}:
                shutil.rmtree(run.folder, ignore_errors=True)  # a mistake leaves nothing behind
        raise ended from error  # for run_entry(); Hydra would print any other exception once more
    return None


def _call(function: Callable[[DictConfig, Run], object], cfg: DictConfig, run: Run) -> None:
    """Call a command's function; what ends the program on the way, such as a library, fails."""
    try:
        function(cfg, run)
    except SystemExit as error:
        if _signals:  # Lightning makes it of the interrupt
            raise
        raise RuntimeError(f"sys.exit({error.code!r}) was called before the end") from error


# --- what went wrong, in a line ------------------------------------------------------------------


def _no_stage() -> str:
    train = program("train")
    return (
        "stage: missing; expected one of\n"
        f"  {train} stage=pretrain         to train a base\n"
        f"  {train} stage=lora digit=9     to repair it with an adapter"
    )


def explain(error: BaseException) -> tuple[str, int]:
    """What to say of an exception, and the exit code that belongs to it."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OmegaConfBaseException):
        return _explain_omegaconf(error), UserError.exit_code
    if isinstance(error, HydraException):
        return _explain_hydra(error), UserError.exit_code
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, not imported here
        return one_line(error), UserError.exit_code
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return _explain_group(error), UserError.exit_code
    if isinstance(error, ValueError) and str(error).startswith(("Only one of --", "The --resolve")):
        return one_line(error), UserError.exit_code  # Hydra's, about its own flags
    return f"{type(error).__name__}: {one_line(error)}", 1


def _explain_omegaconf(error: OmegaConfBaseException) -> str:
    """OmegaConf's own message; for an unknown key, those that are nearest to it."""
    key, parent = error.full_key or "configuration", error.parent_node
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and parent is not None:
        return f"{key}: nothing reads this key{_nearest(key, parent)}"
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]}: missing; expected {missing[1]}=VALUE"
    reason = one_line(str(error).partition("\n    full_key:")[0])  # the rest is for programmers
    _, _, ours = reason.partition("UserError raised while resolving interpolation: ")
    return ours or f"{key}: {reason}"


def _nearest(key: str, parent: Any) -> str:
    """The keys in ``parent`` that may be meant by ``key``, which is not in it, for a message."""
    group, _, name = key.rpartition(".")
    keys = list(flatten(OmegaConf.to_container(parent), into=dict))
    nearest = [each for each in keys if each.rpartition(".")[2] == name]
    nearest = nearest or get_close_matches(name, dict.fromkeys([*map(str, parent), *keys]), n=3)
    if not nearest:
        return f"; expected one of {', '.join(sorted(map(str, parent)))}"
    return f"; the nearest: {', '.join(f'{group}.{each}'.lstrip('.') for each in nearest)}"


def _explain_hydra(error: HydraException) -> str:
    """Hydra's own message, with what it leaves out."""
    message = one_line(re.split(r"Config search path:|See https://hydra", str(error))[0])
    refused = error.__cause__
    if isinstance(refused, ConfigKeyError | ConfigAttributeError) and refused.parent_node:
        if OmegaConf.is_missing(refused.parent_node, "stage"):
            return _no_stage()  # without one Hydra would advise to add whatever key belongs to it
        return _explain_omegaconf(refused)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: {message}; expected quotes, 'key=\"value\"', around unusual signs"
        )
    if "hydra/launcher" in message or "hydra/sweeper" in message:
        return f'{message}; others: pip install "lora-mnist[sweep]", or [ray], or [slurm]'
    if isinstance(refused, OmegaConfBaseException):  # Hydra says where, OmegaConf says what
        return f"{message}: {explain(refused)[0]}"
    return message


def _explain_group(error: ValueError) -> str:
    """Hydra's message about a group's value, with that value, which Hydra does not name."""
    for text in sys.argv[1:]:
        key, _, value = text.partition("=")
        names = sorted(file.stem for file in (CONFIGS / key).glob("*.yaml"))
        if names and (value == "null" or value.isdigit()):
            return f"{text}: expected one of {', '.join(names)}, or no {key}= for its default"
    return one_line(error)


# --- folders -------------------------------------------------------------------------------------


def run_folder(runs: str, resume: str | None, now: str) -> str:
    """Resolver of ``hydra.run.dir``: a new folder in ``runs``, or that of the run to go on with."""
    if resume is None:
        return str(Path(runs, now))
    if resume == "latest":
        record = latest(Path(runs), f"*/{RUN_RECORD}")
    else:
        record = Path(resume) / RUN_RECORD
    if record is None or not record.is_file():
        raise UserError(
            f"resume={resume}: expected the folder of a run that began to train, with {RUN_RECORD} "
            "in it, or latest"
        )
    return str(record.parents[1].absolute())


OmegaConf.register_new_resolver("lora_mnist.run_folder", run_folder, use_cache=True, replace=True)


class ClaimOutputFolder(Callback):
    """Hydra callback: claims the folder of a run, or of a sweep, before anything is written there.

    Hydra only warns of a callback's exceptions; ``SystemExit`` ends the command.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``.

        A run that goes on has its folder, and so have the processes that Lightning starts: both
        have ``hydra.output_subdir=null``.
        """
        global _new_folder
        _new_folder = None
        HydraConfig.instance().set_config(config)  # Hydra does so next; ${hydra:...} needs it here
        try:
            if OmegaConf.is_missing(config, "stage"):
                raise UserError(_no_stage())
            resume = OmegaConf.select(config, "sweep.resume")
            if resume is not None:
                raise UserError(f"sweep.resume={resume}: expected a sweep; start it with -m")
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is not None:
                if not folder.exists():
                    _new_folder = folder.absolute()
                if (folder / subfolder).exists():
                    raise UserError(
                        f"hydra.run.dir={folder}: holds another run; expected a new folder"
                    )
                (folder / subfolder).mkdir(parents=True)  # of two at once, one ends here
        except Exception as error:
            raise SystemExit from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; where an entry keeps no results, Hydra runs its jobs alone."""
        HydraConfig.instance().set_config(config)
        try:
            keys = swept_keys(config)
            is_set = keys.get("stage") or keys.get("experiment")  # by what is swept
            if OmegaConf.is_missing(config, "stage") and not is_set:
                raise UserError(_no_stage())
            if "sweep" in config:
                open_sweep(config)
        except Exception as error:
            raise SystemExit from error
