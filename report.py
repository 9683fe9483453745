"""Draw a run or a sweep again: figures and report.html, from its folder (run=FOLDER or latest)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_job


@hydra.main(version_base="1.3", config_path="configs", config_name="report")
def main(cfg: DictConfig) -> float | None:
    return run_job("report", cfg)


if __name__ == "__main__":
    run_command(main)
