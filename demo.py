"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.demo import demo  # here, so that --help does not wait for torch

    return run_command(demo, cfg)


if __name__ == "__main__":
    run_entry(main)
