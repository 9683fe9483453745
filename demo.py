"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_job


@hydra.main(version_base="1.3", config_path="configs", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    return run_job("demo", cfg)


if __name__ == "__main__":
    run_command(main)
