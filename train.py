"""Pretrain a base (stage=pretrain), or repair its weak class with an adapter (stage=lora)."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.commands.train import train  # here, so that --help does not wait for torch

    train(cfg, run)


if __name__ == "__main__":
    run_entry(main, "train")
