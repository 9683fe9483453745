"""Draw a run or a sweep again: figures and report.html, from its folder (run=FOLDER or latest)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.cli import run_command, run_entry


@hydra.main(version_base="1.3", config_path="configs", config_name="report")
def main(cfg: DictConfig) -> float | None:
    from lora_mnist.report import report  # here, so that --help does not wait for torch

    return run_command(report, cfg)


if __name__ == "__main__":
    run_entry(main)
