"""Test the base, and saved adapters beside it (adapter=FOLDER)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.evaluate import evaluate  # here, so that --help does not wait for torch

    return run_command(evaluate, cfg)


if __name__ == "__main__":
    run_entry(main)
