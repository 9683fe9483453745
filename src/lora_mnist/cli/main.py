"""What the five entries share: a command goes in, Hydra runs it, and an exit code comes out."""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig

from lora_mnist.cli.arguments import give_to_hydra
from lora_mnist.cli.ends import Passing, end_of
from lora_mnist.cli.explain import explain
from lora_mnist.cli.sweep import run_job
from lora_mnist.config.command import Command, Run
from lora_mnist.errors import one_line
from lora_mnist.project import CONFIGS

log = logging.getLogger(__name__)

#: Those that end a command.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_entry(function: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``, and end it as :func:`.end_of` says."""
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
    raise end_of(error, signals)  # here, or its traceback would begin with what carried it
