"""Whether a base was trained on images that were prepared otherwise than configured."""

import logging
from operator import attrgetter
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import nn

from lora_mnist.classifier.net import eval_on_device
from lora_mnist.classifier.preprocessing import Trial, conventions, try_conventions
from lora_mnist.classifier.significance import mcnemar
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

    Returns:
        The overrides of a better way; empty if there is none, and in processes after the first.
    """
    if rank_zero_only.rank or cfg.check is None:  # type: ignore[attr-defined]
        return []
    is_known = str(cfg.net._target_).startswith("lora_mnist.") or run.is_sweep
    is_known = is_known or cfg.get("adapter") is not None
    if cfg.check == Check.auto and is_known:
        return []
    settings: Any = {"mean": data.mean, "std": data.std}
    if isinstance(data, FolderDataModule):
        settings = OmegaConf.to_container(cfg.data, resolve=True)
        settings |= {"channels": data.channels, "color_order": data.color_order}
    ways = conventions(settings)
    with eval_on_device(net, trainer.strategy.root_device) as device, config_group("data"):
        if cfg.check == Check.preprocessing:
            return _compare(run, net, data, device, ways)
        ways = _promising(net, data, device, ways)
        if len(ways) == 1:
            return []
        return _warn_of_better(run, list(try_conventions(net, data, device, ways, _MANY)))


def _compare(
    run: Run, net: nn.Module, data: ImageDataModule, device: torch.device, ways: list[Any]
) -> list[str]:
    """``check=preprocessing``: print what each way gives, and what to make of it."""
    trials = list(try_conventions(net, data, device, ways, _MANY))
    table = Table(*(f"data.{key}" for key in ways[0]), "errors", "loss")
    for trial in sorted(trials, key=_LOSS):
        cells = [_text(value) for value in trial.convention.values()]
        table.add_row(*cells, str(int(trial.wrong.sum())), f"{trial.loss:.3f}")
    show(table)
    changes = _warn_of_better(run, trials)
    if not changes:
        text = "nothing tried is clearly better than the configured way: %d errors in %d images"
        if isinstance(data, FolderDataModule):
            text += "; not tried: other values of data.image_size"
        log.info(text, trials[0].wrong.sum(), len(trials[0].wrong))
    return changes


def _warn_of_better(run: Run, trials: list[Trial]) -> list[str]:
    """Log the command for another way than the first, if it has fewer errors, and not by chance.

    Returns:
        The overrides of this way; empty if there is none.
    """
    configured, best = trials[0], min(trials, key=_LOSS)
    repaired = int((configured.wrong & ~best.wrong).sum())
    broken = int((best.wrong & ~configured.wrong).sum())
    if broken >= repaired or mcnemar(repaired, broken) >= _LEVEL:
        return []
    changes, replaced = [], []
    for key, value in best.convention.items():
        if value != configured.convention[key]:
            changes.append(f"data.{key}={_text(value)}")
            replaced.append(f"data.{key}=")
    log.warning(
        "the network was most likely trained otherwise, %d errors instead of %d in %d validation "
        "and training images: %s",
        *(best.wrong.sum(), configured.wrong.sum(), len(best.wrong)),
        command_line([*run.typed_without("check=", "hydra.", *replaced), *changes]),
    )
    return changes


def _promising(
    net: nn.Module, data: ImageDataModule, device: torch.device, ways: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The configured way, which is the first of ``ways``, and those that are best on a few images.

    Only the configured one is returned where no other is better.
    """
    trials: list[Trial] = []
    way, pixels = ways[0], ("mean", "std")
    # One thing after another: all combinations would take twice as long.
    for keys in (pixels, ("color_order",), ("resize", "crop_pct"), pixels):
        tried = [ways[0]]
        for other in ways[1:]:
            if all(other[key] == way[key] for key in other if key not in keys):
                tried.append(other)
        trials += try_conventions(net, data, device, tried, _FEW)
        way = min(trials, key=_LOSS).convention
    best = [ways[0]]
    if way != ways[0]:
        # Few images do not tell the best ways from each other.
        for trial in sorted(trials, key=_LOSS):
            if trial.convention not in best:
                best.append(trial.convention)
    return best[: 1 + _BEST]


def _text(value: object) -> str:
    return "null" if value is None else str(value).replace(" ", "")
