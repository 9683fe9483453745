"""Pretrain a base (stage=pretrain), or repair its weak class with an adapter (stage=lora)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.train import train  # here, so that --help does not wait for torch

    return run_command(train, cfg)


if __name__ == "__main__":
    run_entry(main)
