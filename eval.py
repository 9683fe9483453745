"""Test a saved adapter beside its base (adapter=PATH)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.errors import exit_on_user_error


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    with exit_on_user_error():
        from lora_mnist.run import evaluate  # late: --help, --cfg and completion need no torch

        evaluate(cfg)


if __name__ == "__main__":
    main()
