"""What loggers get at the end of a run, beside the scalars that Lightning gives to all of them.

Each gets the verdict, and the figures where it can show them. TensorBoard also gets a page of
charts (Custom Scalars), the errors of each class and the configuration (Text), and the run's row
of the table of runs (HParams).
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from PIL import Image

from lora_mnist.show.changes import FEW_CLASSES
from lora_mnist.show.figures import FIGURES
from lora_mnist.show.tables import results_text
from lora_mnist.show.verdict import verdict_text


def tell_loggers(trainer: Trainer, results: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
    """Give every logger the verdict, and the figures where it can show them.

    W&B and TensorBoard are then closed: in a sweep the next job has its own.
    """
    verdict = verdict_text(results)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _tell_tensorboard(logger, results, figures, verdict)
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


def _tell_tensorboard(
    logger: TensorBoardLogger,
    results: Mapping[str, Any],
    figures: Mapping[str, Path],
    verdict: str,
) -> None:
    writer, config = logger.experiment, dict(logger.hparams)
    writer.add_custom_scalars(charts_of(results))
    writer.add_text("verdict", verdict)
    writer.add_text("errors of each class", indent(results_text(results), "    "))
    # Four spaces make code of it in Markdown.
    writer.add_text("configuration", indent(OmegaConf.to_yaml(OmegaConf.create(config)), "    "))
    for name, path in figures.items():
        pixels = np.asarray(Image.open(path).convert("RGB"))
        writer.add_image(f"{FIGURES}/{name}", pixels, dataformats="HWC")
    ends = {}
    for key in ("accuracy", "errors", "errors_of_target", "repaired", "broken"):
        if key in results["test"]:
            ends[f"test/{key}"] = results["test"][key]
    logger.log_hyperparams(config, ends)
    writer.close()  # else its thread would stay, one more with each job of a sweep


def charts_of(results: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The page of Custom Scalars: by group and title the tags of a chart's curves.

    TensorBoard looks for a tag with ``re.match``. A chart without curves is left out.
    """
    is_repair, has_targets = "val_base" in results, "errors_of_target" in results.get("val", {})
    tags = {"loss": ["train/loss$"]}
    if "val" in results:
        tags = {"loss": ["train/loss$", "val/loss$"]}
        tags |= {"accuracy": ["val/accuracy$"], "errors": ["val/errors$"]}
    if is_repair:
        tags = {"loss": tags["loss"]}
        tags["accuracy, adapted and base"] = ["val/accuracy$", "val_base/accuracy$"]
        tags["errors, adapted and base"] = ["val/errors$", "val_base/errors$"]
        tags["repaired and broken"] = ["val/repaired$", "val/broken$"]
    if is_repair and has_targets:
        for key in ("errors_of_target", "errors_elsewhere"):
            tags[key.replace("_", " ")] = [f"val/{key}$", f"val_base/{key}$"]
    groups = {"training and validation": tags}
    if "val" in results and (has_targets or len(results["classes"]) <= FEW_CLASSES):
        groups["accuracy of each class"] = {"adapted": ["val/accuracy_per_class/"]}
        if is_repair:
            groups["accuracy of each class"]["base"] = ["val_base/accuracy_per_class/"]
    if "val" in results and results["stage"] == "lora":
        groups["adapter"] = {"norm of what it adds to each layer": ["adapter/norm/"]}
    layout = {}
    for group, titles in groups.items():
        layout[group] = {title: ["Multiline", patterns] for title, patterns in titles.items()}
    return layout
