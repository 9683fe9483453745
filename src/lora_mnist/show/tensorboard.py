"""What TensorBoard gets beyond the scalars, which the LightningModule logs to all loggers.

Custom     the page that makes sense first: base and adapted on one chart.
Images     the figures of the run's folder; see :mod:`lora_mnist.show.figures`.
Histograms the singular values of what the adapter adds to each layer.
Text       the verdict, the errors of each class, the configuration.
HParams    what the command set, then what runs often differ in, and how they ended.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from PIL import Image

from lora_mnist.lora import read_factors
from lora_mnist.show.figures import FIGURES, singular_values
from lora_mnist.show.tables import results_text
from lora_mnist.show.verdict import verdict_text

#: Figures in the order in which to look at them; TensorBoard sorts by name.
_ORDER = (
    *("errors", "dial", "repaired", "broken", "wrong", "confused_base", "confused_adapted"),
    *("confusion_difference", "confusion_adapted", "confusion_base", "singular_values"),
)
#: The charts of the custom page, by page; their tags are regular expressions.
_LAYOUT = {
    "The repair": {
        "loss": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "accuracy, base and adapted": ["Multiline", ["^val/accuracy$", "^val_base/accuracy$"]],
        "errors on what is to be repaired": ["Multiline", ["^val(_base)?/errors_of_target$"]],
        "errors elsewhere": ["Multiline", ["^val(_base)?/errors_elsewhere$"]],
        "repaired and broken": ["Multiline", ["^val/repaired$", "^val/broken$"]],
    },
    "Accuracy of each class": {
        "adapted": ["Multiline", ["^val/accuracy_per_class/"]],
        "base": ["Multiline", ["^val_base/accuracy_per_class/"]],
    },
    "The adapter": {
        "size of what it adds to each layer (Frobenius norm)": ["Multiline", ["^adapter/norm/"]],
    },
}
#: What runs often differ in, and what a run without has: a base has rank 0. TensorBoard takes the
#: columns of its table from the first run that it finds, perhaps of a base.
_USUAL: dict[str, bool | int | float | str] = {
    **{"digit": "", "stage": "", "lora.rank": 0, "lora.alpha": 0, "optimizer.lr": 0},
    **{"data.replay": 0, "data.hardness": 0, "loss.target_weight": 0, "trainer.max_steps": 0},
    "seed": 0,
}


class TensorBoardPage(Callback):
    """Lightning callback: lays out the first page, and writes the configuration down."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            return  # an earlier run, which is gone on with, has done that
        config = OmegaConf.to_yaml(OmegaConf.create(dict(pl_module.hparams)))
        for logger in _loggers(trainer):
            logger.experiment.add_custom_scalars(_LAYOUT)
            logger.experiment.add_text("3 configuration", _as_code(config))


def show_outcome(trainer: Trainer, results: Mapping[str, Any], folder: Path) -> None:
    """Give TensorBoard the verdict, a table of the classes, what was drawn, and a row of HParams.

    Figures and adapter are those in the run's ``folder``; without a TensorBoard it does nothing.
    """
    for logger in _loggers(trainer):
        writer = logger.experiment
        writer.add_text("1 verdict", verdict_text(results))
        writer.add_text("2 errors of each class", _as_code(results_text(results)))
        paths = [folder / FIGURES / f"{name}.png" for name in _ORDER]
        for number, path in enumerate([path for path in paths if path.is_file()], start=1):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            writer.add_image(f"{number} {path.stem.replace('_', ' ')}", pixels, dataformats="HWC")
        if (folder / "adapter").is_dir():
            for layer, factors in read_factors(folder / "adapter").items():
                tag = f"adapter/singular_values/{layer}"
                writer.add_histogram(tag, singular_values(*factors), trainer.global_step)
        counted = ("accuracy", "errors_of_target", "repaired", "broken")
        ends = {f"test/{k}": results["test"][k] for k in counted if k in results["test"]}
        logger.log_hyperparams(hparams_of(results, dict(logger.hparams)), ends, trainer.global_step)
        writer.close()  # else its thread would stay, one more with each job of a sweep


def hparams_of(
    results: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, bool | int | float | str]:
    """A run's row in HParams: what its command or its sweep set, then the usual keys."""
    cfg = OmegaConf.create(dict(config))
    values = {}
    if HydraConfig.initialized():
        for override in HydraConfig.get().overrides.task:
            key, _, text = override.lstrip("+~").partition("=")
            value = OmegaConf.select(cfg, key)
            # A group, such as loss=margin, is known by the name that was chosen.
            values[key] = value if isinstance(value, bool | int | float | str) else text
    for key, default in _USUAL.items():
        value = OmegaConf.select(cfg, key)
        values.setdefault(key, default if value is None else value)
    if target := results.get("target"):
        values["digit"] = "+".join(map(str, target)) if isinstance(target, list) else str(target)
    return values


def _loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _as_code(text: str) -> str:
    """Four spaces in front of each line are code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
