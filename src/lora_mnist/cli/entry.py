"""Runs a command by its name, for ``train.py`` and the others of a checkout, and ``lora-mnist``."""

import signal
from importlib import import_module

from omegaconf import DictConfig

from lora_mnist.cli.arguments import command_name
from lora_mnist.cli.main import SIGNALS, run_entry
from lora_mnist.config.command import Run
from lora_mnist.config.keys import checked
from lora_mnist.project import COMMANDS


def run_command(function: str, config_name: str) -> None:
    """Run a function of ``lora_mnist.commands``; a refusal, and --help, do not wait for torch."""
    module, _, name = function.rpartition(".")

    def command(cfg: DictConfig, run: Run) -> None:
        cfg = checked(cfg, run)
        has_mask = hasattr(signal, "pthread_sigmask")  # Windows has none
        if has_mask:  # what a signal raises, an import of torch may swallow
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            imported = import_module(module)
        finally:
            if has_mask:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        getattr(imported, name)(cfg, run)

    run_entry(command, config_name)


def main() -> None:
    """Run the command that is typed behind ``lora-mnist``."""
    name = command_name()
    run_command(COMMANDS[name], name)
