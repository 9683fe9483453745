"""Tell what pictures show, for the base and with an adapter (images="my/*.png" adapter=FOLDER)."""

from omegaconf import DictConfig

from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.commands.predict import predict  # here, so that --help does not wait for torch

    predict(cfg, run)


if __name__ == "__main__":
    run_entry(main, "predict")
