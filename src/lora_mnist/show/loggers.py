"""Verdict and figures for a run's loggers; Lightning gives them the scalars.

TensorBoard also gets a page of charts (Custom Scalars), the errors of each class (Text), and a row
in the table of runs (HParams).
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lora_mnist.show.figures import FIGURES
from lora_mnist.show.tables import results_text
from lora_mnist.show.verdict import verdict_text

#: The page of Custom Scalars: groups of charts, and for each title a pattern of tags for
#: ``re.match``. A chart is empty where a run has no such tag.
_CHARTS = {
    "training and validation": {
        "loss": "(train|val)/loss$",
        "accuracy": "val(_base)?/accuracy$",
        "errors": "val(_base)?/errors$",
        "repaired and broken": "val/(repaired|broken)$",
        "errors on what is to be repaired": "val(_base)?/errors_of_target$",
        "errors elsewhere": "val(_base)?/errors_elsewhere$",
    },
    "accuracy of each class": {
        "trained": "val/accuracy_per_class/",
        "base": "val_base/accuracy_per_class/",
    },
    "adapter": {"norm of what it adds to each layer": "adapter/norm/"},
}


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
    layout = {}
    for group, charts in _CHARTS.items():
        layout[group] = {title: ["Multiline", [pattern]] for title, pattern in charts.items()}
    writer.add_custom_scalars(layout)
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
