"""Test the base, and saved adapters beside it (adapter=FOLDER)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_job


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> float | None:
    return run_job("evaluate", cfg)


if __name__ == "__main__":
    run_command(main)
