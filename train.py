"""Pretrain the base (stage=pretrain) or fine-tune an adapter on it (stage=lora)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.errors import exit_on_user_error


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    with exit_on_user_error():
        from lora_mnist.run import train  # late: --help, --cfg and completion need no torch

        train(cfg)


if __name__ == "__main__":
    main()
