"""The program ``lora-mnist`` of the installed package: the commands, without a checkout.

``lora-mnist train stage=pretrain`` does what ``python train.py stage=pretrain`` does in a checkout;
``data/`` and ``outputs/`` are in the folder where it is started.
"""

import sys
from difflib import get_close_matches

from omegaconf import DictConfig

from lora_mnist import __version__
from lora_mnist.cli import run_entry
from lora_mnist.run import Run

_COMMANDS = ["train", "eval", "predict", "export", "demo"]
_USAGE = f"""lora-mnist {__version__}

  lora-mnist train stage=pretrain        pretrain a base
  lora-mnist train stage=lora digit=9    repair its weak class with an adapter
  lora-mnist eval adapter=latest         test the base, and saved adapters beside it
  lora-mnist predict images=FOLDER       which class pictures show
  lora-mnist export out=FILE             base and adapter as one plain network
  lora-mnist demo                        a page to draw on

lora-mnist COMMAND --help lists every key of a command, which KEY=VALUE sets."""


def _run(cfg: DictConfig, run: Run) -> None:
    # Imports stand where they are needed, so that --help does not wait for torch.
    match cfg.stage:
        case "eval":
            from lora_mnist.evaluate import evaluate

            evaluate(cfg, run)
        case "predict":
            from lora_mnist.predict import predict

            predict(cfg, run)
        case "export":
            from lora_mnist.export import export

            export(cfg, run)
        case "demo":
            from lora_mnist.demo import demo

            demo(cfg, run)
        case _:
            from lora_mnist.train import train

            train(cfg, run)


def main() -> None:
    """Run the command that the first argument names: it is the name of its configuration."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _COMMANDS:
        sys.argv.insert(1, "--config-name")
    elif name and not name.startswith("-"):
        nearest = get_close_matches(name, _COMMANDS, n=1) or _COMMANDS
        print(f"{name}: no such command; expected {', '.join(nearest)}", file=sys.stderr)
        raise SystemExit(2)
    elif name != "--config-name":  # which a process that Lightning starts has
        print(_USAGE, file=sys.stdout if name in ("--help", "-h") else sys.stderr)
        raise SystemExit(0 if name in ("--help", "-h") else 2)
    run_entry(_run, "train")
