"""Whether a network of one's own was trained on images that were prepared otherwise."""

import copy
import logging
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.classifier.net import eval_on_device
from lora_mnist.classifier.significance import mcnemar
from lora_mnist.data import FolderDataModule, ImageDataModule, ImageTensors
from lora_mnist.disk.base import Base
from lora_mnist.project import Run, command_line

log = logging.getLogger(__name__)

#: The usual means and deviations of pixels from 0 to 1, beside those that are measured.
_PIXELS: tuple[dict[str, Any], ...] = ({"mean": 0.5, "std": 0.5}, {"mean": 0.0, "std": 1.0})
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
#: The usual ways to bring an image to its size: Resize(224) or Resize(256) before CenterCrop(224),
#: or Resize((224, 224)).
_SIZINGS: tuple[dict[str, Any], ...] = (
    {"resize": "crop", "crop_pct": 1.0},
    {"resize": "crop", "crop_pct": 0.875},
    {"resize": "stretch", "crop_pct": 1.0},
)
#: As many validation images are tried, and as many training images, where a network's own
#: preprocessing stands out most.
_IMAGES = 200
#: The level of McNemar's test: strict, since the best of several ways is tested.
_LEVEL = 0.01


@torch.no_grad()
def check_preprocessing(
    cfg: DictConfig, run: Run, trainer: Trainer, net: nn.Module, data: ImageDataModule, base: Base
) -> list[str]:
    """Warn if a network of one's own does clearly better on images prepared in another usual way.

    Nothing is tried where the preprocessing is known, because network or base are ours or the file
    of an adapter names it; nor with a ``data.transform``, nor in a sweep's jobs.

    Returns:
        The overrides of the better way; empty if there is none, and in processes after the first.
    """
    is_known = str(cfg.net._target_).startswith("lora_mnist.") or base.is_pretrained_here
    is_known = is_known or cfg.get("adapter") is not None
    configured = data.preprocessing()
    if is_known or run.is_sweep or "mean" not in configured or rank_zero_only.rank:  # type: ignore[attr-defined]
        return []
    sizing = configured.get("resize"), configured.get("crop_pct")
    images = {sizing: _some_images(data.sets[:2])}
    changes = [*_PIXELS]
    if data.channels == 3:
        changes.append(_IMAGENET)
    if cfg.data.get("mean") is not None:
        measured = copy.copy(data)
        measured.mean = measured.std = None
        measured.measure(images[sizing])
        changes.append({"mean": measured.mean, "std": measured.std})
    if cfg.data.get("image_size") is not None:
        changes = [*changes, *_SIZINGS, *changes]  # resized otherwise, another mean may be better
    best, tried = configured, [configured]
    with eval_on_device(net, trainer.strategy.root_device) as device:
        wrong_as_configured = fewest_wrong = _is_wrong(net, data, images[sizing], device)
        for change in changes:
            way = {**best, **change}
            if way in tried:
                continue
            tried.append(way)
            other = copy.copy(data)
            other.mean, other.std = way["mean"], way["std"]
            sizing = way.get("resize"), way.get("crop_pct")
            if sizing not in images and isinstance(data, FolderDataModule):
                parts = data.prepared(resize=sizing[0], crop_pct=sizing[1])
                images[sizing] = _some_images(parts)
            is_wrong = _is_wrong(net, other, images[sizing], device)
            if is_wrong.sum() < fewest_wrong.sum():
                best, fewest_wrong = way, is_wrong
    repaired = int((wrong_as_configured & ~fewest_wrong).sum())
    broken = int((fewest_wrong & ~wrong_as_configured).sum())
    if mcnemar(repaired, broken) >= _LEVEL:
        return []
    keys = [key for key in best if best[key] != configured[key]]
    overrides = [f"data.{key}={best[key]}".replace(" ", "") for key in keys]
    log.warning(
        "the network was most likely trained otherwise, %d errors instead of %d in %d validation "
        "and training images: %s",
        *(fewest_wrong.sum(), wrong_as_configured.sum(), len(fewest_wrong)),
        command_line([*run.typed_without("hydra.", *(f"data.{key}=" for key in keys)), *overrides]),
    )
    return overrides


def _some_images(parts: Any) -> ImageTensors:
    """Images from everywhere in the sets ``parts``, whose classes stand in a row."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for part in parts:
        spread = torch.linspace(0, len(part) - 1, min(_IMAGES, len(part)))
        some, some_labels = part.take(spread.long().tolist())
        images.append(some)
        labels.append(some_labels)
    return ImageTensors(torch.cat(images), torch.cat(labels))


def _is_wrong(
    net: nn.Module, data: ImageDataModule, images: ImageTensors, device: torch.device
) -> Tensor:
    """Which images ``net`` gets wrong when ``data`` normalises them: bool, shape (N,)."""
    wrong = []
    for batch, labels in data.batches(images, device, name="preprocessing"):
        wrong.append((net(batch).argmax(dim=1) != labels).cpu())
    return torch.cat(wrong)
