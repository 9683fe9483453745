"""Drawing a run or a sweep again, from what it left in its folder."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lora_mnist.disk.results import RESULTS_FILE
from lora_mnist.errors import UserError, one_line
from lora_mnist.show.sweep_report import is_sweep, make_sweep_report

#: Where the report is, is this command's result: it goes to standard output, as tables do.
log = logging.getLogger("lora_mnist.show.report")


def report(cfg: DictConfig, run_folder: Path | None = None) -> Path:
    """Draw the figures and the report of the run, or the sweep, that ``cfg.run`` names.

    Args:
        cfg: a configuration of ``configs/report.yaml``; it is not changed.
        run_folder: not used; everything is written into the folder of the run.

    Returns:
        The report's path.

    Raises:
        UserError: if there is no such run, or its folder cannot be read or written.
    """
    if not isinstance(cfg.paths.outputs, str):
        raise UserError(f"paths.outputs={cfg.paths.outputs}: expected a folder")
    folder = find_run(cfg.run, Path(cfg.paths.outputs))
    try:
        if is_sweep(folder):
            path = make_sweep_report(folder)
        else:
            from lora_mnist.show.report import make_report  # late: a sweep's needs no torch

            path = make_report(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"run={cfg.run}: {one_line(error)}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"run={cfg.run}: damaged, or of another version ({type(error).__name__}: "
            f"{one_line(error)}); expected a run as train.py or eval.py leaves it"
        ) from error
    log.info("report: %s", path)
    return path


def find_run(run: Any, outputs: Path) -> Path:
    """The folder that ``run`` names: a run's, a sweep's, or that of the ``latest`` of either.

    Raises:
        UserError: if nothing is there.
    """
    if run == "latest":
        found = [folder for folder in outputs.glob("*/*") if _is_run(folder)]
        # The folders are named by the time.
        folders = sorted(found, key=lambda folder: folder.name)
        if not folders:
            raise UserError(f"run=latest: expected a run in {outputs}, found none")
        return folders[-1]
    folder = Path(str(run))
    if not _is_run(folder):
        raise UserError(
            f"run={run}: expected the folder of a run, with {RESULTS_FILE} in it, or of a sweep, "
            "or latest"
        )
    return folder


def _is_run(folder: Path) -> bool:
    return (folder / RESULTS_FILE).is_file() or is_sweep(folder)
