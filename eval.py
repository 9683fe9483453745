"""Test the base, and saved adapters beside it (adapter=FOLDER)."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.commands.evaluate import (
        evaluate,  # here, so that --help does not wait for torch
    )

    evaluate(cfg, run)


if __name__ == "__main__":
    run_entry(main, "eval")
