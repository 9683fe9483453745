"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run, checked_copy


def main(cfg: DictConfig, run: Run) -> None:
    cfg = checked_copy(cfg, run)  # a refusal, and --help, do not wait for torch
    from lora_mnist.commands.demo import demo

    demo(cfg, run)


if __name__ == "__main__":
    run_entry(main, "demo")
