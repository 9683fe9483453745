"""The end of a run: its table and verdict, its report, and what its loggers get."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lora_mnist.project import Run
from lora_mnist.show.outcome import log_outcome
from lora_mnist.show.report import make_report
from lora_mnist.show.tables import print_results

log = logging.getLogger("lora_mnist.run")  # lora_mnist.show is for tables, on standard output


def report_run(
    trainer: Trainer, results: Mapping[str, Any], run: Run, figures: bool | None
) -> None:
    """Print the results of a run, write its report, and give both to every logger.

    With ``figures=None`` a single run has a report, and a job of a sweep has none.
    """
    if not trainer.is_global_zero:
        return
    print_results(results, run.folder)
    paths: dict[str, Path] = {}
    if figures or (figures is None and not run.is_sweep):
        paths = make_report(run.folder)
        log.info("report: %s", run.folder / "report.html")
    log_outcome(trainer, results, paths)
    log.info("run: %s", run.folder)
