"""What all commands share: a configuration goes in, an exit code comes out.

torch is imported only when a job begins, so that ``--help``, ``--cfg`` and completion answer at
once.
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError, bad_value, exit_on_user_error
from lora_mnist.process import lasting_imports
from lora_mnist.project import PROJECT
from lora_mnist.runs import find_run
from lora_mnist.sweep.folder import key_of, make_or_exit
from lora_mnist.sweep.job import swept_job
from lora_mnist.sweep.session import conduct

#: Flags with which a command still runs something.
_STARTS = ("-m", "--multirun")
#: Letters in the name of a file.
_LONGEST_NAME = 200
#: Files that a run has open at a time, with those that libraries open for a moment.
_LEAST_DESCRIPTORS = 32
#: Bytes, for configuration and log.
_LEAST_SPACE = 1 << 16
_NO_STAGE = """stage: missing; expected one of
  python train.py stage=pretrain         to train a base
  python train.py stage=lora digit=9     to repair it with an adapter"""


def run_command(main: Callable[[], Any]) -> None:
    """Run Hydra's ``main`` and end the process with the exit code that fits."""
    # Nothing is written to the user's home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if os.access(PROJECT, os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(PROJECT / "outputs" / "cache" / "matplotlib"))
    with conduct():
        _check_arguments(Path(sys.argv[0]).stem, sys.argv[1:])
        main()


def _check_arguments(entry: str, arguments: list[str]) -> None:
    """Answer some mistakes better than Hydra can, which would see them first."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            if value and not argument.startswith("-"):
                parsed = OverridesParser.create().parse_override(argument)
                if (PROJECT / "configs" / key).is_dir() and not parsed.is_sweep_override():
                    _check_choice(argument, key, parsed.value())
        except HydraException:
            # A function, a list or a quoted value that is cut short is for Hydra to explain.
            if not re.match(r"\w+\(|[\"'{[]", value) and re.search(r"[][{},: ]", value):
                quoted = shlex.quote(f'{key}="{value}"')
                _exit(f"{argument}: expected quotes around the value: {quoted}")
    # Without a stage Hydra would advise to add whatever key belongs to one with a +.
    asks = any(argument.startswith("-") and argument not in _STARTS for argument in arguments)
    chosen = any(re.match(r"(stage|experiment)=", argument) for argument in arguments)
    has_defaults = (PROJECT / "configs" / "local" / "default.yaml").exists()
    if entry == "train" and not (asks or chosen or has_defaults):
        _exit(_NO_STAGE)


def _check_choice(argument: str, group: str, chosen: object) -> None:
    """Refuse what cannot be the name of an option, or a list of names; Hydra knows which exist."""
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            options = sorted(path.stem for path in (PROJECT / "configs" / group).glob("*.yaml"))
            _exit(f"{argument}: expected one of {', '.join(options)}; or ~{group}, for none")


def _exit(message: str, code: int = 2) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def run_job(command: str, cfg: DictConfig) -> float | None:
    """Run one job: call the function ``command`` of the module of that name.

    Returns:
        The value of ``sweep.metric`` in a sweep, for sweepers that search.
    """
    logging.raiseExceptions = False  # what cannot be logged is no reason to fail
    with exit_on_user_error(), swept_job(cfg) as job:
        if job.due:
            with lasting_imports():
                function = getattr(import_module(f"lora_mnist.{command}"), command)
            function(cfg, Path(HydraConfig.get().runtime.output_dir))
    return job.objective


class RequireStage(Callback):
    """Hydra callback: answers a command without a stage before anything else is done."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run without a stage."""
        if OmegaConf.is_missing(config, "stage"):
            _exit(_NO_STAGE)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep whose jobs would have none; stage or experiment may be what is swept."""
        swept = {key_of(o) for o in config.hydra.overrides.task if "," in o or "(" in o}
        if not swept & {"stage", "experiment"}:
            self.on_run_start(config)


class RunFolder(Callback):
    """Hydra callback: gives each run a folder of its own before anything is written.

    Hydra itself would end in a traceback where the folder cannot be made, and would write a second
    run over the first where ``hydra.run.dir`` names the folder of a run.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``, or return to the folder of the run that ``resume`` names.

        A process of a distributed run joins its parent's folder. A run that goes on keeps the
        configuration with which it began.
        """
        _require_descriptors()
        HydraConfig.instance().set_config(config)  # Hydra does so next; ${hydra:...} needs it here
        if config.hydra.output_subdir is None:
            return
        try:
            folder = Path(config.hydra.run.dir)
        except OmegaConfBaseException as error:
            _exit(str(bad_value(error)))
        resume = OmegaConf.select(config, "resume")
        if resume is None:
            make_or_exit("hydra.run.dir", folder, config.hydra.output_subdir)
            _require_space(folder / config.hydra.output_subdir)
            return
        try:
            folder = find_run(resume, folder.parent)
        except UserError as error:
            _exit(str(error))
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.run.dir = str(folder)
            config.hydra.output_subdir = None


def _require_space(new_folder: Path) -> None:
    """End a run at once that could leave nothing; Hydra would end it with a traceback."""
    try:
        with atomic_write(new_folder / "space") as path:
            path.write_bytes(bytes(_LEAST_SPACE))
        (new_folder / "space").unlink()
    except OSError as error:
        with suppress(OSError):
            new_folder.rmdir()
        _exit(f"{new_folder.parent}: cannot be written ({error.strerror})", code=1)


def _require_descriptors() -> None:
    """End a run at once that could open no files, in its first or in its last step."""
    opened: list[int] = []
    try:
        for _ in range(_LEAST_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        _exit(
            f"{error.strerror}: expected {_LEAST_DESCRIPTORS} files, not {len(opened)}, that "
            "can be opened; a larger limit is set with: ulimit -n 1024",
            code=1,
        )
    finally:
        for descriptor in opened:
            os.close(descriptor)
