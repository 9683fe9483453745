"""What the six entries share: Hydra's ``main`` goes in, an exit code comes out.

Exit codes: 0; 1 for a failure, or failed jobs of a sweep; 2 for a mistake in the command; 130 and
143 after SIGINT and SIGTERM. Whatever goes wrong is told in one line on standard error, and
``HYDRA_FULL_ERROR=1`` brings the traceback, as ever in Hydra. Nothing here imports torch, so that
``--help``, ``--cfg`` and completion answer at once.
"""

import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.disk.latest import latest
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import program
from lora_mnist.sweep.command import command_line, override
from lora_mnist.sweep.job import run_swept
from lora_mnist.sweep.session import close_sweep, is_conducting, open_sweep, swept_keys

log = logging.getLogger(__name__)

_FULL_ERROR = "HYDRA_FULL_ERROR"
_NO_STAGE = f"""stage: missing; expected one of
  {program("train")} stage=pretrain         to train a base
  {program("train")} stage=lora digit=9     to repair it with an adapter"""
#: The extras that bring Hydra's launchers and sweepers.
_EXTRAS = {"ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
_EXTRAS |= dict.fromkeys(("joblib", "optuna", "tpe"), "sweep")

#: Signals that have asked this command to end. Lightning makes SystemExit(1) of the interrupt, and
#: other code may swallow it: what came first decides.
_signals: list[signal.Signals] = []
#: How to go on with the run that this command was at; empty where there is no way.
_go_on: list[str] = []
#: HYDRA_FULL_ERROR as the user has set it.
_full_error = "0"


def run(main: Callable[[], object]) -> None:
    """Run an entry's ``main``, and end the process with the exit code that fits."""
    global _full_error
    _signals.clear()
    _go_on.clear()
    _full_error = os.environ.get(_FULL_ERROR, "0")
    handlers = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    error, code = None, 0
    # torch and Lightning make half a million objects that stay: searching them for garbage takes
    # seconds, while they are imported and when the process ends.
    gc.disable()
    try:
        with env_override({_FULL_ERROR: "1"}):  # so that Hydra raises what it would print
            main()
    except SystemExit as exit_:  # argparse's, Lightning's, or ours around what went wrong
        error, code = exit_.__cause__, exit_.code if isinstance(exit_.code, int) else 0
    except BaseException as raised:
        error = raised
    gc.enable()
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)  # what remains to be done must not be cut off
    reason, shows_traceback = None, _full_error == "1" and not _signals
    if _signals:
        reason, code = f"interrupted by {_signals[0].name}", 128 + _signals[0]
    elif error is not None:
        reason, code = explain(error)
    if is_conducting():
        from lora_mnist.show.report import make_sweep_report  # late: jinja2, matplotlib

        code, sweep = close_sweep(reason, code)
        if sweep is not None:
            make_sweep_report(sweep)
    elif reason is not None and not shows_traceback:
        if code == 1 and not isinstance(error, UserError):
            reason += f" ({_FULL_ERROR}=1 shows where)"
        print(reason, *_go_on, sep="\n", file=sys.stderr)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if error is not None and shows_traceback:
        raise error
    if code:
        raise SystemExit(code)


def _note(number: int, frame: FrameType | None) -> None:
    _signals.append(signal.Signals(number))
    raise KeyboardInterrupt  # at which Lightning also ends the processes that it has started


def command(function: Callable[[DictConfig, Path], object], cfg: DictConfig) -> float | None:
    """Call a command's function, in the folder that Hydra has made for it.

    Args:
        function: gets the configuration and the run's folder.
        cfg: the configuration that Hydra has composed.

    Returns:
        The value of ``sweep.metric`` in a sweep, for sweepers that search.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and "sweep" in cfg:
        value = run_swept(function, cfg, explain)
        if _signals:  # and the job has swallowed it
            raise KeyboardInterrupt
        return value
    folder = Path(hydra.runtime.output_dir)
    try:
        with env_override({_FULL_ERROR: _full_error}):
            function(cfg, folder)
    except BaseException as error:
        if not isinstance(error, UserError) and (folder / "checkpoints" / "last.ckpt").is_file():
            texts = [*hydra.overrides.task, *hydra.overrides.hydra]
            left_out = ("resume=", "hydra.run.dir=", "hydra.mode=")
            kept = [text for text in texts if not text.startswith(left_out)]
            _go_on.append(f"go on with: {command_line([*kept, override('resume', folder)])}")
        if not isinstance(error, Exception):
            raise
        told = None if isinstance(error, UserError) else error
        log.error("%s", explain(error)[0], exc_info=told)  # to the run's own log
        raise SystemExit from error  # for run() to explain; Hydra would print it, too
    return None


# --- what went wrong, in a line ------------------------------------------------------------------


def explain(error: BaseException) -> tuple[str, int]:
    """What to say of an exception, and the exit code that belongs to it."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OmegaConfBaseException):
        reason = one_line(str(error).partition("\n    full_key:")[0])  # the rest is for programmers
        _, _, ours = reason.partition("UserError raised while resolving interpolation: ")
        return ours or f"{error.full_key or 'configuration'}: {reason}", UserError.exit_code
    if isinstance(error, HydraException):
        return _explain_hydra(error), UserError.exit_code
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, not imported here
        return one_line(error), UserError.exit_code
    return f"{type(error).__name__}: {one_line(error)}", 1


def _explain_hydra(error: HydraException) -> str:
    """Hydra's own message, or a better one where it would lead astray."""
    said = one_line(re.split(r"Config search path:|See https://hydra", str(error))[0])
    refused = error.__cause__
    unknown = re.search(r"^Could not override '(.*)'\.\n.*use \+(.*)$", str(error), re.DOTALL)
    if unknown and isinstance(refused, OmegaConfBaseException) and refused.parent_node:
        known = [str(key) for key in refused.parent_node if key != "hydra"]
        if "stage" in known and OmegaConf.is_missing(refused.parent_node, "stage"):
            return _NO_STAGE  # without one Hydra would advise to add whatever key belongs to it
        add = f"+{one_line(unknown[2])}"
        return (
            f"{unknown[1]}: no such key; expected one of {', '.join(known)}; or, to add one, {add}"
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {said}; expected quotes, 'key=\"value\"', around unusual signs"
    plugin = re.search(r"Could not find 'hydra/(?:launcher|sweeper)\S*/(\w+)'", said)
    if plugin and plugin[1] in _EXTRAS:
        return f'{said}; expected: pip install "lora-mnist[{_EXTRAS[plugin[1]]}]"'
    if isinstance(refused, OmegaConfBaseException):  # Hydra says where, OmegaConf says what
        return f"{said}: {explain(refused)[0]}"
    return said


# --- folders -------------------------------------------------------------------------------------


def run_folder(runs: str, resume: str | None, now: str) -> str:
    """Resolver for ``hydra.run.dir``: a new folder in ``runs``, or that of the run to go on with.

    Raises:
        UserError: if ``resume`` names no run.
    """
    if resume is None:
        return str(Path(runs, now))
    pattern = "checkpoints/run.json"
    found = latest(Path(runs), f"*/{pattern}") if resume == "latest" else Path(resume) / pattern
    if found is None or not found.is_file():
        where = f" in {runs}" if resume == "latest" else ""
        raise UserError(
            f"resume={resume}: expected the folder of a run that began to train, with {pattern} in "
            f"it, or latest; found none{where}"
        )
    return str(found.parents[1].absolute())


OmegaConf.register_new_resolver("lora_mnist.run_folder", run_folder, use_cache=True, replace=True)


class Folders(Callback):
    """Hydra callback: claims the folder of a run, or of a sweep, before anything is written there.

    Hydra only warns of a callback's exceptions; ``SystemExit`` ends the command.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``.

        A run that goes on has its folder, and so have the processes of a distributed run: Lightning
        starts them with ``hydra.output_subdir=null``.
        """
        HydraConfig.instance().set_config(config)  # Hydra does so next; ${hydra:...} needs it here
        try:
            if OmegaConf.is_missing(config, "stage"):
                raise UserError(_NO_STAGE)
            resume = OmegaConf.select(config, "sweep.resume")
            if resume is not None:
                raise UserError(f"sweep.resume={resume}: expected a sweep; start it with -m")
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is not None:
                (folder / subfolder).mkdir(parents=True)  # of two at once, one ends here
        except FileExistsError:
            taken = UserError(f"hydra.run.dir={folder}: holds another run; expected a new folder")
            raise SystemExit from taken
        except Exception as error:
            raise SystemExit from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; where an entry keeps no results, Hydra runs its jobs alone."""
        HydraConfig.instance().set_config(config)
        try:
            keys = swept_keys(config)
            is_set = keys.get("stage") or keys.get("experiment")  # by what is swept
            if OmegaConf.is_missing(config, "stage") and not is_set:
                raise UserError(_NO_STAGE)
            if "sweep" in config:
                open_sweep(config)
        except Exception as error:
            raise SystemExit from error
