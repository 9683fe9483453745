"""Draw a run or a sweep again: figures and report.html, from its folder (run=FOLDER or latest)."""

from omegaconf import DictConfig

from lora_mnist.cli import run_entry
from lora_mnist.project import Run


def main(cfg: DictConfig, run: Run) -> None:
    from lora_mnist.report import report  # here, so that --help does not wait for torch

    report(cfg, run)


if __name__ == "__main__":
    run_entry(main, "report")
