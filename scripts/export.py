"""Fold adapters into their base and write one plain network (adapter=PATH format=onnx out=FILE)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.errors import exit_on_user_error
from lora_mnist.memory import lasting_imports, share_registered_configs


@hydra.main(version_base="1.3", config_path="../configs", config_name="export")
def main(cfg: DictConfig) -> None:
    with exit_on_user_error():
        with lasting_imports():  # late: --help, --cfg and completion need no torch
            from lora_mnist.export import export

        export(cfg)


if __name__ == "__main__":
    share_registered_configs()
    main()
