"""The end of a run: its table, verdict and report, and what its loggers get of them.

The loggers' numbers are in ``repair/module.py``.
"""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from lora_mnist.data.images import Images
from lora_mnist.repair.module import logged_metrics
from lora_mnist.repair.predictions import Predictions
from lora_mnist.run import Run
from lora_mnist.show.pictures import first_pictures
from lora_mnist.show.report import FIGURES, make_report
from lora_mnist.show.tables import print_results
from lora_mnist.show.verdict import verdict_text

#: The page of Custom Scalars: by group, titles of charts, and how the tags of their curves begin.
_CHARTS = {
    "training and validation": {
        "loss": "(train|val)/loss$",
        "accuracy": "val(_base)?/accuracy$",
        "errors": "val(_base)?/errors$",
        "repaired and broken": "val/(repaired|broken)$",
        "errors on what is to be repaired": "val(_base)?/errors_of_target$",
        "errors elsewhere": "val(_base)?/errors_elsewhere$",
        "false calls of it": "val(_base)?/false_calls_of_target$",
    },
    "accuracy of each class": {
        "before": "val_base/accuracy_per_class/",
        "after": "val/accuracy_per_class/",
    },
    "precision of each class": {
        "before": "val_base/precision_per_class/",
        "after": "val/precision_per_class/",
    },
}

log = logging.getLogger("lora_mnist.run")  # lora_mnist.show is for tables, on standard output


def report_and_close_loggers(
    trainer: Trainer,
    results: Mapping[str, Any],
    run: Run,
    figures: bool | None,
    predictions: Predictions,
    images: Images,
) -> None:
    """Print the results, write the report, and give the verdict to every logger.

    ``predictions`` are those for the test ``images``. With ``figures=None`` a single run has a
    report, and a job of a sweep has none. TensorBoard also gets the figures.
    """
    counts = {}
    for split, value in results.items():
        if isinstance(value, Mapping) and "errors_per_class" in value:
            counts[split] = value
    metrics = logged_metrics(counts, results["classes"], results["targets"])
    for logger in trainer.loggers:
        logger.log_metrics(metrics, results["steps"])
    print_results(results, run.folder)
    drawn: dict[str, Figure] = {}
    if figures or (figures is None and not run.is_sweep):
        table = predictions.columns()
        pictures = first_pictures(table, images, results["classes"])
        drawn = make_report(run.folder, results, table, pictures)
        log.info("report: %s", run.folder / "report.html")
    verdict = verdict_text(results)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _log_to_tensorboard(logger, results, drawn, verdict)
            continue
        logger.log_hyperparams({"verdict": verdict})
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # in a sweep the next job has its own
    log.info("run: %s", run.folder)


def _log_to_tensorboard(
    logger: TensorBoardLogger,
    results: Mapping[str, Any],
    figures: Mapping[str, Figure],
    verdict: str,
) -> None:
    """Log a page of charts (Custom Scalars), verdict, figures, and the run's row in HParams."""
    writer = logger.experiment
    layout: dict[str, dict[str, Any]] = {}
    for group, charts in _CHARTS.items():
        layout[group] = {title: ["Multiline", [pattern]] for title, pattern in charts.items()}
    writer.add_custom_scalars(layout)
    writer.add_text("verdict", verdict)
    for name, figure in figures.items():
        writer.add_figure(f"{FIGURES}/{name}", figure, close=False)
    ends = {}
    keys = "accuracy errors errors_of_target false_calls_of_target repaired broken"
    for key in keys.split():
        if key in results["test"]:
            ends[f"test/{key}"] = results["test"][key]
    logger.log_hyperparams(logger.hparams, ends)
    writer.close()  # else its thread would stay, one more with each job of a sweep
