"""Verdict and figures for a run's loggers; Lightning gives them the scalars.

:mod:`.classifier.scalars` says which. TensorBoard also gets a page of charts (Custom Scalars), the
errors of each class (Text), and a row in the table of runs (HParams).
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lora_mnist.show.changes import FEW_CLASSES, targets_of
from lora_mnist.show.figures import FIGURES
from lora_mnist.show.tables import results_text
from lora_mnist.show.verdict import verdict_text


def log_outcome(trainer: Trainer, results: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
    """Give every logger the verdict, and the figures where it can show them.

    W&B and TensorBoard are then closed: in a sweep the next job has its own.
    """
    verdict = verdict_text(results)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _log_to_tensorboard(logger, results, figures, verdict)
        elif isinstance(logger, WandbLogger):
            for name, path in figures.items():
                logger.log_image(f"{FIGURES}/{name}", [str(path)])
            logger.experiment.summary["verdict"] = verdict
            logger.experiment.finish()
        elif isinstance(logger, MLFlowLogger):
            for path in figures.values():
                logger.experiment.log_artifact(logger.run_id, str(path), FIGURES)
            # Its page shows this tag as the run's description.
            logger.experiment.set_tag(logger.run_id, "mlflow.note.content", verdict)
        else:
            logger.log_hyperparams({"verdict": verdict})
            logger.save()


def _log_to_tensorboard(
    logger: TensorBoardLogger,
    results: Mapping[str, Any],
    figures: Mapping[str, Path],
    verdict: str,
) -> None:
    writer = logger.experiment
    writer.add_custom_scalars(charts_of(results))
    writer.add_text("verdict", verdict)
    # Four spaces make code of it in Markdown.
    writer.add_text("errors of each class", indent(results_text(results), "    "))
    for name, path in figures.items():
        pixels = np.asarray(Image.open(path).convert("RGB"))
        writer.add_image(f"{FIGURES}/{name}", pixels, dataformats="HWC")
    ends = {}
    for key in ("accuracy", "errors", "errors_of_target", "repaired", "broken"):
        if key in results["test"]:
            ends[f"test/{key}"] = results["test"][key]
    logger.log_hyperparams(logger.hparams, ends)
    writer.close()  # else its thread would stay, one more with each job of a sweep


def charts_of(results: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The page of Custom Scalars: for each group, titles of charts and patterns of their tags.

    TensorBoard applies ``re.match``. A chart that would have no curve is left out.
    """
    val, is_repair = results.get("val", {}), "val_base" in results
    charts = {"loss": "(train|val)/loss$"}
    if val:
        charts |= {
            "accuracy": "val(_base|_before)?/accuracy$",
            "errors": "val(_base|_before)?/errors$",
        }
    if is_repair:
        charts["repaired and broken"] = "val/(repaired|broken)$"
    if is_repair and "errors_of_target" in val:
        charts["errors on what is to be repaired"] = "val(_base)?/errors_of_target$"
        charts["errors elsewhere"] = "val(_base)?/errors_elsewhere$"
    groups = {"training and validation": charts}
    if val and (len(results["classes"]) <= FEW_CLASSES or targets_of(results)):
        groups["accuracy of each class"] = {"trained": "val/accuracy_per_class/"}
        if is_repair:
            groups["accuracy of each class"]["base"] = "val_base/accuracy_per_class/"
    layout = {}
    for group, charts in groups.items():
        layout[group] = {title: ["Multiline", [pattern]] for title, pattern in charts.items()}
    return layout
