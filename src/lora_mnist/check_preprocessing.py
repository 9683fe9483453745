"""Whether a base was trained on images that were prepared otherwise than configured."""

import logging
from operator import attrgetter
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import nn

from lora_mnist.classifier.net import on_device
from lora_mnist.classifier.preprocessing import (
    Trial,
    conventions,
    try_conventions,
)
from lora_mnist.classifier.significance import mcnemar, p_text
from lora_mnist.data import FolderDataModule, ImageDataModule
from lora_mnist.errors import config_group
from lora_mnist.project import Run, command_line
from lora_mnist.settings import Check
from lora_mnist.show.tables import show

log = logging.getLogger(__name__)
_LOSS = attrgetter("loss")

#: ``check=auto`` first tries a few validation and training images in several ways. Then it tries
#: more of each in the best ways and in the configured one.
_FEW, _MANY, _BEST = 20, 300, 3
#: The level of McNemar's test: strict, since the best of several conventions is tested.
_LEVEL = 0.01


def check_preprocessing(
    cfg: DictConfig, run: Run, trainer: Trainer, net: nn.Module, data: ImageDataModule
) -> list[str]:
    """Try the base on images prepared in other ways than configured, as ``cfg.check`` says.

    ``check=preprocessing`` prints all that was tried. If another way is better, its command is
    printed.

    Returns:
        The overrides of a better way; empty if there is none, and in processes after the first.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return []
    is_ours = str(cfg.net._target_).startswith("lora_mnist.")
    if cfg.check is None or (cfg.check == Check.auto and (is_ours or cfg.adapter or run.is_sweep)):
        return []
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    if isinstance(data, FolderDataModule):
        settings |= {"channels": data.channels, "color_order": data.color_order}
    else:
        settings = {"mean": data.mean, "std": data.std}
    tried = conventions(settings)
    with on_device(net, trainer.strategy.root_device) as device, config_group("data"):
        if cfg.check == Check.auto:
            few: list[Trial] = []
            way, pixels = tried[0], ("mean", "std")
            # One thing after another: all combinations would take twice as long.
            for keys in (pixels, ("color_order",), ("resize", "crop_pct"), pixels):
                ways = [tried[0]]
                for other in tried[1:]:
                    if all(other[key] == way[key] for key in other if key not in keys):
                        ways.append(other)
                few += try_conventions(net, data, device, ways, _FEW)
                way = min(few, key=_LOSS).convention
            if way == tried[0]:
                return []
            # Few images do not tell the best ways from each other.
            best_first = [tried[0]]
            for trial in sorted(few, key=_LOSS):
                if trial.convention not in best_first:
                    best_first.append(trial.convention)
            tried = best_first[: 1 + _BEST]
        trials = list(try_conventions(net, data, device, tried, _MANY))
    configured, best = trials[0], min(trials, key=_LOSS)
    errors, fewer = int(configured.wrong.sum()), int(best.wrong.sum())
    repaired = int((configured.wrong & ~best.wrong).sum())
    p_value = mcnemar(repaired, fewer - errors + repaired)
    is_better = fewer < errors and p_value < _LEVEL
    if cfg.check == Check.auto and not is_better:
        return []
    table = Table(*(f"data.{key}" for key in best.convention), "errors", "loss")
    for trial in sorted(trials, key=_LOSS):
        texts = [_text(value) for value in trial.convention.values()]
        table.add_row(*texts, str(int(trial.wrong.sum())), f"{trial.loss:.3f}")
    if cfg.check == Check.preprocessing:
        show(table)
    images = f"in {len(best.wrong):,} validation and training images"
    if best is configured:
        text = f"nothing tried is better than the configured way: {errors} errors {images}"
        if isinstance(data, FolderDataModule):
            text += "; other values of data.image_size were not tried"
        log.info("%s", text)
        return []
    left_out, changes = ["check=", "hydra."], []
    for key, value in best.convention.items():
        if value != configured.convention[key]:
            left_out.append(f"data.{key}=")
            changes.append(f"data.{key}={_text(value)}")
    log.warning(
        "the network was %s trained otherwise, %d errors instead of %d %s (%s): %s",
        *("most likely" if is_better else "perhaps", fewer, errors, images, p_text(p_value)),
        command_line([*run.typed_without(*left_out), *changes]),
    )
    return changes if is_better else []


def _text(value: object) -> str:
    """A value of a key, as it is typed."""
    return "null" if value is None else str(value).replace(" ", "")
