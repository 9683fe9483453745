"""What the five entries share: a command goes in, Hydra runs it, and an exit code comes out.

This is the order of a run. ``give_to_hydra`` (arguments.py) puts what is typed as Hydra takes it.
Hydra composes the configuration and calls ``on_run_start`` (folder.py), which claims the folder;
then it calls ``task``, and that the command (entry.py): keys and values are checked, torch is
imported, and the function runs. A sweep begins with ``on_multirun_start`` and ends with
``on_multirun_end`` (folder.py); each job is a ``task``, which calls its command by ``run_job``
(sweep.py). Errors go on as ``PastHydra``, and ``end_of`` (ends.py) makes them an exit code.
"""

import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from omegaconf import DictConfig

from lora_mnist.cli.arguments import give_to_hydra
from lora_mnist.cli.ends import PastHydra, end_of
from lora_mnist.cli.explain import log_failure
from lora_mnist.cli.sweep import run_job
from lora_mnist.config.command import Command, Run
from lora_mnist.project import CONFIGS

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
            log_failure(error)  # now: the log ends with the task
            raise PastHydra(error) from None
        if signals:  # in a __del__, where Python ignores what is raised
            raise KeyboardInterrupt
        return metric

    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        # Nothing else makes Hydra raise its errors: it would print them, and exit with 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            give_to_hydra()
            main()
            sys.stdout.flush()
        return
    except BaseException as raised:
        error = raised.args[0] if isinstance(raised, PastHydra) else raised
    conf = HydraConfig.get() if HydraConfig.initialized() else None
    raise end_of(error, signals, conf)  # here, or its traceback would begin with what carried it
