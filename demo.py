"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.commands.demo import demo  # here, so that --help does not wait for torch

    demo(cfg, run)


if __name__ == "__main__":
    run_entry(main, "demo")
