"""Pretrain a base (stage=pretrain), or repair its weak class with an adapter (stage=lora)."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run, checked_copy


def main(cfg: DictConfig, run: Run) -> None:
    cfg = checked_copy(cfg, run)  # a refusal, and --help, do not wait for torch
    from lora_mnist.commands.train import train

    train(cfg, run)


if __name__ == "__main__":
    run_entry(main, "train")
