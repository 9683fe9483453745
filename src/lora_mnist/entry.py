"""The program ``lora-mnist`` of the installed package: the commands, without a checkout.

``lora-mnist train stage=pretrain`` does what ``python train.py stage=pretrain`` does in a checkout;
``data/`` and ``outputs/`` are in the folder where it is started.
"""

from importlib import import_module

from omegaconf import DictConfig

from lora_mnist import __version__
from lora_mnist.cli import run_program
from lora_mnist.command import Run

#: By its name, the module of a command, and its function there.
_COMMANDS = {name: name for name in ("train", "predict", "export", "demo")} | {"eval": "evaluate"}
_USAGE = f"""lora-mnist {__version__}

  lora-mnist train stage=pretrain        pretrain a base
  lora-mnist train stage=lora digit=9    repair its weak class with an adapter
  lora-mnist eval adapter=latest         test the base, and a saved adapter beside it
  lora-mnist predict images=FOLDER       which class pictures show
  lora-mnist export out=FILE             base and adapter as one plain network
  lora-mnist demo                        a page to draw on

lora-mnist COMMAND --help lists every key of a command, which KEY=VALUE sets."""


def _run(cfg: DictConfig, run: Run) -> None:
    name = _COMMANDS.get(cfg.stage, "train")
    module = import_module(f"lora_mnist.{name}")  # here, so that --help does not wait for torch
    getattr(module, name)(cfg, run)


def main() -> None:
    """Run the command that the first argument names."""
    run_program(_run, _COMMANDS, _USAGE)
