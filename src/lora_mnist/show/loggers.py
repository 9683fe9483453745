"""What loggers get beyond the scalars and the configuration, which Lightning gives to all of them.

Each gets the verdict, and the figures where it can show them. TensorBoard also has base and adapted
on one chart (Custom Scalars), the singular values of what the adapter adds (Histograms), the errors
of each class and the configuration (Text), and a row for the run (HParams).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from PIL import Image

from lora_mnist.lora import read_factors
from lora_mnist.project import typed_overrides
from lora_mnist.show.figures import FIGURES, singular_values
from lora_mnist.show.tables import results_text
from lora_mnist.show.verdict import verdict_text
from lora_mnist.sweep.command import key_of

#: The scalars to look at first.
_FIRST = re.compile(r"train/|lr-|val/(accuracy|loss|errors\w*|repaired|broken)$")
#: The charts of the custom page, by page; their tags are regular expressions.
_LAYOUT = {
    "The repair": {
        "loss": ["Multiline", ["^repair/(train|val)/loss$"]],
        "accuracy, base and adapted": ["Multiline", ["repair/val(_base)?/accuracy$"]],
        "errors on what is to be repaired": ["Multiline", ["repair/val(_base)?/errors_of_target$"]],
        "errors elsewhere": ["Multiline", ["repair/val(_base)?/errors_elsewhere$"]],
        "repaired and broken": ["Multiline", ["^repair/val/(repaired|broken)$"]],
    },
    "Accuracy of each class": {
        "adapted": ["Multiline", ["repair/val/accuracy_per_class/"]],
        "base": ["Multiline", ["repair/val_base/accuracy_per_class/"]],
    },
    "The adapter": {
        "size of what it adds to each layer (Frobenius norm)": ["Multiline", ["/adapter/norm/"]],
    },
    "Pretraining": {
        "loss": ["Multiline", ["^pretrain/(train|val)/loss$"]],
        "accuracy": ["Multiline", ["^pretrain/val/accuracy$"]],
        "accuracy of each class": ["Multiline", ["pretrain/val/accuracy_per_class/"]],
    },
}
#: What runs often differ in, and what a run without has: a base has rank 0. TensorBoard takes the
#: columns of its table from the first run that it finds, perhaps of a base.
_USUAL: dict[str, bool | int | float | str] = {
    "digit": "",
    "stage": "",
    "lora.rank": 0,
    "lora.alpha": 0,
    "optimizer.lr": 0,
    "data.replay": 0,
    "data.hardness": 0,
    "loss.target_weight": 0,
    "trainer.max_steps": 0,
    "seed": 0,
}


class SortedTensorBoardLogger(TensorBoardLogger):
    """Lightning's, with a first page, the configuration, and the curves to look at first in front.

    TensorBoard sorts tags by name and opens the first two groups: ``pretrain`` and ``repair``. They
    are two, since a base takes thousands of steps and a repair takes a hundred.

    Args:
        save_dir: as Lightning's, and so is all else.
        stage: of the run.
    """

    def __init__(self, save_dir: str, stage: str, **settings: Any) -> None:
        super().__init__(save_dir, **settings)
        self.group = "pretrain" if stage == "pretrain" else "repair"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        tags = {}
        for name, value in metrics.items():
            tag = f"{self.group}/{name}" if _FIRST.match(name) else f"rest of {self.group}/{name}"
            tags[name if name.startswith("test") else tag] = value
        super().log_metrics(tags, step)

    def log_hyperparams(self, params: Any, *ends: Any) -> None:
        if not self.hparams:  # the first time
            config = OmegaConf.to_yaml(OmegaConf.create(dict(params)))
            self.experiment.add_custom_scalars(_LAYOUT)
            self.experiment.add_text("3 configuration", indent(config, "    "))  # code in Markdown
        super().log_hyperparams(params, *ends)


def tell_loggers(
    trainer: Trainer, results: Mapping[str, Any], figures: Mapping[str, Path], adapter: Path
) -> None:
    """Give every logger the verdict, and the figures where it can show them.

    W&B and TensorBoard are then closed: in a sweep the next job has its own.
    """
    verdict = verdict_text(results)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _show_in_tensorboard(logger, trainer.global_step, results, figures, adapter)
        elif isinstance(logger, WandbLogger):
            for name, path in figures.items():
                logger.log_image(f"figures/{name}", [str(path)])
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


def _show_in_tensorboard(
    logger: TensorBoardLogger,
    step: int,
    results: Mapping[str, Any],
    figures: Mapping[str, Path],
    adapter: Path,
) -> None:
    writer = logger.experiment
    writer.add_text("1 verdict", verdict_text(results))
    writer.add_text("2 errors of each class", indent(results_text(results), "    "))
    for number, (name, path) in enumerate(figures.items(), start=1):  # it sorts them by name
        pixels = np.asarray(Image.open(path).convert("RGB"))
        tag = f"test figures/{number} {name.replace('_', ' ')}"
        writer.add_image(tag, pixels, dataformats="HWC")
    if adapter.is_dir():
        for layer, factors in read_factors(adapter).items():
            tag = f"rest of repair/singular values/{layer}"
            writer.add_histogram(tag, singular_values(*factors), step)
    counted = ("accuracy", "errors_of_target", "repaired", "broken")
    ends = {f"test/{k}": results["test"][k] for k in counted if k in results["test"]}
    logger.log_hyperparams(hparams_of(results, dict(logger.hparams)), ends, step)
    writer.close()  # else its thread would stay, one more with each job of a sweep


def hparams_of(
    results: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, bool | int | float | str]:
    """A run's row in HParams: the usual keys, and what its command or its sweep set."""
    row = dict(_USUAL)
    for text in typed_overrides("hydra."):
        # A group, such as loss=margin, is known by the name that was chosen.
        row[key_of(text)] = text.partition("=")[2]
    cfg = OmegaConf.create(dict(config))
    for key in row:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, bool | int | float | str):
            row[key] = value
    if target := results.get("target"):
        row["digit"] = "+".join(map(str, target)) if isinstance(target, list) else str(target)
    return row
