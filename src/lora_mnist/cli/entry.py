"""The program ``lora-mnist`` of the installed package: the commands, without a checkout.

``lora-mnist train stage=pretrain`` does what ``python train.py stage=pretrain`` does in a checkout;
``data/`` and ``outputs/`` are in the folder where it is started.
"""

import sys
from importlib import import_module

from omegaconf import DictConfig

from lora_mnist import __version__
from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import COMMANDS, Run, checked_copy

_USAGE = f"""lora-mnist {__version__}

  lora-mnist train stage=pretrain                      pretrain a base
  lora-mnist train experiment=repair target=weakest    repair its weakest class
  lora-mnist train stage=lora digit=9                  train an adapter on the nines alone
  lora-mnist eval adapter=latest                       test the base, and a saved adapter beside it
  lora-mnist predict images=FOLDER adapter=latest      which class pictures show
  lora-mnist export adapter=latest out=FILE            base and adapter as one plain network
  lora-mnist demo                                      a page to draw on

lora-mnist COMMAND --help lists every key of a command, which KEY=VALUE sets. Your own are in a file
of yours, classifier/photos.yaml: lora-mnist COMMAND --config-dir . classifier=photos"""


def _run(cfg: DictConfig, run: Run) -> None:
    name = cfg.stage if cfg.stage in COMMANDS else "train"
    name = "evaluate" if name == "eval" else name
    cfg = checked_copy(cfg, run)  # a refusal, and --help, do not wait for torch
    module = import_module(f"lora_mnist.commands.{name}")
    getattr(module, name)(cfg, run)


def main() -> None:
    """Run the command that the first argument names; its configuration has the same name."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv.insert(1, "--config-name")
    elif name in ("--help", "-h"):
        print(_USAGE)
        return
    elif name != "--config-name":  # which a process that Lightning starts has
        print(f"{name}: no such command\n\n{_USAGE}" if name else _USAGE, file=sys.stderr)
        raise SystemExit(2)
    run_entry(_run, name if name in COMMANDS else "train")
