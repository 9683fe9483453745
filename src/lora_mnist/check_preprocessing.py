"""Whether a network of one's own is the right one, and its images are prepared as in training."""

import copy
import logging
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lora_mnist.classifier import Classifier
from lora_mnist.command import Run
from lora_mnist.data import Folder, ImageDataset, Images
from lora_mnist.data.images import measured_pixels
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.predictions import columns_at
from lora_mnist.repair.significance import is_near_chance, mcnemar

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


def check_preprocessing(classifier: Classifier, run: Run, trainer: Trainer) -> list[str]:
    """Warn if a network of one's own does clearly better on images prepared in another usual way.

    Nothing is tried where the preprocessing is known, because network or base are ours or the file
    of an adapter names it; nor with a ``prepare.transform``, nor in a sweep's jobs.

    Returns:
        The overrides of the better way; empty if there is none, and in processes after the first.
    """
    net, dataset, base = classifier.net, classifier.dataset, classifier.base
    assert base is not None
    is_ours = str(classifier.settings.net["_target_"]).startswith("lora_mnist.")
    is_known = is_ours or base.is_pretrained_here or classifier.adapter is not None
    configured = dataset.preprocessing()
    if is_known or run.is_sweep or "mean" not in configured or not trainer.is_global_zero:
        return []
    some = _spread(dataset.sets.train).followed_by(_spread(dataset.sets.val))
    if not len(some):
        return []
    sizing = configured.get("resize"), configured.get("crop_pct")
    images = {sizing: _in_memory(some)}
    mean, std = measured_pixels(images[sizing])
    changes = [*_PIXELS, {"mean": mean, "std": std}]
    if dataset.channels == 3:
        changes.insert(2, _IMAGENET)
    if classifier.settings.prepare.get("image_size") is not None:
        changes = [*changes, *_SIZINGS, *changes]  # resized otherwise, another mean may be better
    best, tried = configured, [configured]
    with evaluating(net, trainer.strategy.root_device) as device:
        wrong_as_configured = fewest_wrong = _is_wrong(net, dataset, images[sizing], device)
        for change in changes:
            way = {**best, **change}
            if way in tried:
                continue
            tried.append(way)
            other = copy.copy(dataset)
            other.mean, other.std = way["mean"], way["std"]
            sizing = way.get("resize"), way.get("crop_pct")
            if sizing not in images and isinstance(dataset, Folder):
                resized = dataset.resized(some, resize=sizing[0], crop_pct=sizing[1])
                images[sizing] = _in_memory(resized)
            is_wrong = _is_wrong(net, other, images[sizing], device)
            if is_wrong.sum() < fewest_wrong.sum():
                best, fewest_wrong = way, is_wrong
    repaired = int((wrong_as_configured & ~fewest_wrong).sum())
    broken = int((fewest_wrong & ~wrong_as_configured).sum())
    if mcnemar(repaired, broken) >= _LEVEL:
        return []
    keys = [key for key in best if best[key] != configured[key]]
    overrides = [f"prepare.{key}={best[key]}".replace(" ", "") for key in keys]
    log.warning(
        "the network was most likely trained on images that were prepared otherwise: it makes "
        "%d errors instead of %d in %d validation and training images with: %s",
        *(fewest_wrong.sum(), wrong_as_configured.sum(), len(fewest_wrong)),
        shlex.join(overrides),
    )
    return overrides


def warn_of_wrong_settings(counts: Mapping[str, Any]) -> None:
    """Warn where the base, with these counts of its predictions, is hardly better than guessing."""
    errors, images = counts["errors_per_class"], counts["images_per_class"]
    if is_near_chance(errors, images):
        log.warning(
            "the base has %d of %d images right, which is hardly better than guessing: if it was "
            "better where it was trained, look at net._target_ and base_ckpt; at prepare.classes, "
            "in the order of the outputs; and at prepare.image_size, prepare.resize, "
            "prepare.channels, prepare.mean and prepare.std, or prepare.transform (docs/failed.md)",
            *(sum(images) - sum(errors), sum(images)),
        )


def _spread(images: Images) -> Images:
    """Some images from everywhere in a set, whose classes stand in a row."""
    return images.subset(torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).long())


def _in_memory(images: Images) -> Images:
    """The same images, read once."""
    return Images(*images.take(range(len(images))))


def _is_wrong(
    net: nn.Module, dataset: ImageDataset, images: Images, device: torch.device
) -> Tensor:
    """Which images the base gets wrong when ``dataset`` normalises them: bool, shape (N,)."""
    columns = columns_at(net, dataset.batches(images, device, name="preprocessing"), [0])
    return columns.prediction[0] != columns.label
