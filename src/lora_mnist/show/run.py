"""What a run shows when it is over: the table, the report, and what its loggers get."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lora_mnist.project import is_sweep
from lora_mnist.show.loggers import tell_loggers
from lora_mnist.show.report import make_report
from lora_mnist.show.tables import print_results

log = logging.getLogger("lora_mnist.run")  # lora_mnist.show is for tables, on standard output


def show_run(
    trainer: Trainer, results: Mapping[str, Any], folder: Path, figures: bool | str
) -> None:
    """Print a run's results, draw them into its ``folder``, and give them to every logger.

    ``figures`` is ``True``, ``False``, or ``auto``: not in a sweep.
    """
    print_results(results, folder)
    paths: dict[str, Path] = {}
    if figures is True or (figures == "auto" and not is_sweep()):
        paths = make_report(folder)
        log.info("report: %s", folder / "report.html")
    tell_loggers(trainer, results, paths)
    log.info("run: %s", folder)
