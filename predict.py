"""Tell what pictures show, for the base and with an adapter (images="my/*.png" adapter=FOLDER)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="predict")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.predict import predict  # here, so that --help does not wait for torch

    return run_command(predict, cfg)


if __name__ == "__main__":
    run_entry(main)
