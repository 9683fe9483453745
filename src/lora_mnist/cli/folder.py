"""The folder of a run, or of a sweep: claimed before Hydra writes into it, and what is left there.

Who writes which file into it is told by ``WRITERS`` in ``run_paths.py``.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.cli.explain import no_stage
from lora_mnist.cli.sweep import close_sweep, end_early, open_sweep
from lora_mnist.config.command import Run, in_grammar
from lora_mnist.errors import UserError
from lora_mnist.project import command_line
from lora_mnist.run_paths import LAST_CHECKPOINT, refuse_used_folder


class Passing(BaseException):
    """Carries an error through Hydra, which makes a line or a warning of an Exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error


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
        raise Passing(error) from None


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


def _conf_of(mode: RunMode) -> Any:
    """Hydra's own configuration of a run, or of a sweep; ``None``: this is none with a folder."""
    if not HydraConfig.initialized():
        return None
    conf = HydraConfig.get()
    # Without a subfolder of Hydra's the folder is the user's, or another process has made it.
    is_own = conf.mode == RunMode.MULTIRUN or conf.output_subdir is not None
    return conf if is_own and conf.mode == mode else None


def finished_jobs() -> str:
    """Where the finished jobs of a sweep are, if this is one."""
    conf = _conf_of(RunMode.MULTIRUN)
    return "" if conf is None else end_early(Path(conf.sweep.dir))


def remove_if_empty() -> None:
    """Remove the folder of a run that has written nothing into it."""
    conf = _conf_of(RunMode.RUN)
    if conf is None:
        return
    folder = Path(conf.run.dir)
    if {path.name for path in folder.glob("*")} <= {conf.output_subdir, f"{conf.job.name}.log"}:
        shutil.rmtree(folder, ignore_errors=True)


def how_to_go_on(is_bug: bool = False) -> str:
    """How to go on from a run's last checkpoint; else how to start again, or where its log is."""
    conf = _conf_of(RunMode.RUN)
    if conf is None:
        return ""
    folder = Path(conf.run.dir).absolute()
    last, run = folder / LAST_CHECKPOINT, Run.of_command_line(conf, folder)
    how, typed = "start again with", run.typed_without("hydra.run.dir", "hydra.mode")
    if last.is_file():  # several trainings have none
        how, typed = "go on with", run.typed_without("hydra.run.dir", "hydra.mode", "ckpt_path")
        typed.append(f"ckpt_path={in_grammar(last)}")
    elif is_bug:
        return f"log: {folder / conf.job.name}.log"
    return f"{how}: {command_line(str(conf.job.config_name), typed)}"
