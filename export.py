"""Fold adapters into their base and write one plain network (adapter=FOLDER out=FILE)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="export")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.export import export  # here, so that --help does not wait for torch

    return run_command(export, cfg)


if __name__ == "__main__":
    run_entry(main)
