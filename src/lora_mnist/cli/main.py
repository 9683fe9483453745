"""The main function of ``lora-mnist`` and the five scripts: from a name to an exit code.

A run goes through these steps. ``give_to_hydra`` (arguments.py) brings the command line into
Hydra's form. Hydra composes the configuration and calls ``on_run_start`` (claim.py), which claims
the folder; then it calls ``task``, which calls ``command``: keys and values are checked, torch is
imported, and the function in ``lora_mnist.commands`` runs. A sweep begins with
``on_multirun_start`` and ends with ``on_multirun_end`` (claim.py); each job is a ``task``, which
calls its command by ``run_job`` (sweep.py). Errors pass Hydra as ``PastHydra``, and ``exit_for``
(exits.py) turns them into an exit code.
"""

import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig

from lora_mnist.cli.arguments import give_to_hydra, parse_command
from lora_mnist.cli.exits import PastHydra, exit_for
from lora_mnist.cli.explain import log_failure
from lora_mnist.cli.sweep import run_job
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.run import Command, Run
from lora_mnist.project import COMMANDS, CONFIGS


def main() -> None:
    """Run the command that follows ``lora-mnist`` on the command line."""
    run_command(parse_command())


def run_command(name: str) -> None:
    """Run one of the five commands; --help and bad keys do not import torch."""

    def command(cfg: DictConfig, run: Run) -> None:
        cfg = resolve_configuration(cfg, run)
        module, _, function = COMMANDS[name].rpartition(".")
        getattr(import_module(module), function)(cfg, run)

    run_by_hydra(command, name)


def run_by_hydra(command: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``, and end it as :func:`.exit_for` says."""
    signals: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """End the command at a signal; Lightning then ends the processes that it has started."""
        signals.append(number)
        raise KeyboardInterrupt

    def task(cfg: DictConfig) -> float | None:
        hydra_conf, metric = HydraConfig.get(), None
        run = Run.from_hydra(hydra_conf, Path(hydra_conf.runtime.output_dir))
        try:
            if run.is_sweep and "sweep" in cfg:
                metric = run_job(command, cfg, run, hydra_conf)
            else:
                command(cfg, run)
        except Exception as error:
            log_failure(error)  # now: the log ends with the task
            raise PastHydra(error) from None
        if signals:  # a __del__ or an import may swallow the exception
            raise KeyboardInterrupt
        return metric

    with_hydra = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        # Without this, Hydra prints its errors and exits with 1 instead of raising them.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            give_to_hydra()
            with_hydra(task)()
            sys.stdout.flush()
        return
    except BaseException as raised:
        error = raised.args[0] if isinstance(raised, PastHydra) else raised
    hydra_conf = HydraConfig.get() if HydraConfig.initialized() else None
    # Raised here, its traceback does not begin with PastHydra's.
    raise exit_for(error, signals, hydra_conf)
