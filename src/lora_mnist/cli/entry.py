"""Finds a command's function, for ``train.py`` and the others of a checkout, and ``lora-mnist``.

``lora-mnist train stage=pretrain``, the program of the installed package, does what ``python
train.py stage=pretrain`` does; ``data/`` and ``outputs/`` are in the folder where it is started.
"""

import signal
from importlib import import_module

from omegaconf import DictConfig

from lora_mnist.cli.arguments import command_name
from lora_mnist.cli.main import SIGNALS, run_entry
from lora_mnist.config.command import Run
from lora_mnist.config.keys import COMMANDS, checked_copy


def run_command(cfg: DictConfig, run: Run) -> None:
    """Call the function of ``lora_mnist.commands`` whose configuration this is."""
    name = cfg.stage if cfg.stage in COMMANDS else "train"
    name = "evaluate" if name == "eval" else name
    cfg = checked_copy(cfg, run)  # a refusal, and --help, do not wait for torch
    has_mask = hasattr(signal, "pthread_sigmask")  # Windows has none
    if has_mask:  # what a signal raises, an import of torch may swallow
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    module = import_module(f"lora_mnist.commands.{name}")
    if has_mask:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    getattr(module, name)(cfg, run)


def main() -> None:
    """Run the command that is typed behind ``lora-mnist``."""
    run_entry(run_command, command_name())
