"""Fold adapters into their base and write one plain network (adapter=FOLDER out=FILE)."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.commands.export import export  # here, so that --help does not wait for torch

    export(cfg, run)


if __name__ == "__main__":
    run_entry(main, "export")
