"""Whether a network of one's own is the right one, and its images are prepared as in training."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lora_mnist.classifier import Classifier
from lora_mnist.data import Folder, ImageDataset, ImageTensors
from lora_mnist.data.dataset import measured_pixels
from lora_mnist.project import command_line
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.significance import is_near_chance, mcnemar
from lora_mnist.run import Run

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
#: A base with this share of wrong images is asked about training images, too; it should get a
#: smaller share of these wrong, at most so many times that of the others.
_MANY_WRONG, _NEARLY_AS_MANY = 0.25, 0.8
#: The level of McNemar's test: strict, since the best of several ways is tested.
_LEVEL = 0.01


@torch.no_grad()
def check_preprocessing(classifier: Classifier, run: Run, trainer: Trainer) -> list[str]:
    """Warn if a network of one's own does clearly better on images prepared in another usual way.

    Nothing is tried where the preprocessing is known, because network or base are ours or the file
    of an adapter names it; nor with a ``data.transform``, nor in a sweep's jobs.

    Returns:
        The overrides of the better way; empty if there is none, and in processes after the first.
    """
    net, dataset, base = classifier.net, classifier.dataset, classifier.base
    assert base is not None
    is_ours = str(classifier.settings["net"]["_target_"]).startswith("lora_mnist.")
    is_known = is_ours or base.is_pretrained_here or classifier.adapter is not None
    configured = dataset.preprocessing()
    if is_known or run.is_sweep or "mean" not in configured or not trainer.is_global_zero:
        return []
    parts: Any = [part for part in (dataset.sets.train, dataset.sets.val) if len(part)]
    if not parts:
        return []
    sizing = configured.get("resize"), configured.get("crop_pct")
    images = {sizing: _some_images(parts)}
    changes = [*_PIXELS]
    if dataset.channels == 3:
        changes.append(_IMAGENET)
    mean, std = measured_pixels(images[sizing])
    changes.append({"mean": mean, "std": std})
    if classifier.settings["data"].get("image_size") is not None:
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
                prepared = dataset.prepared(resize=sizing[0], crop_pct=sizing[1])
                images[sizing] = _some_images([part for part in prepared if len(part)])
            is_wrong = _is_wrong(net, other, images[sizing], device)
            if is_wrong.sum() < fewest_wrong.sum():
                best, fewest_wrong = way, is_wrong
    repaired = int((wrong_as_configured & ~fewest_wrong).sum())
    broken = int((fewest_wrong & ~wrong_as_configured).sum())
    if mcnemar(repaired, broken) >= _LEVEL:
        return []
    keys = [key for key in best if best[key] != configured[key]]
    overrides = [f"data.{key}={best[key]}".replace(" ", "") for key in keys]
    advice = " ".join(overrides)
    if run.typed is not None:  # in a new run: one that goes on keeps its preprocessing
        typed = run.typed_without("hydra.", "resume=", *(f"data.{key}=" for key in keys))
        advice = command_line([*typed, *overrides])
    log.warning(
        "the network was most likely trained on images that were prepared otherwise: it makes "
        "%d errors instead of %d in %d validation and training images with: %s",
        *(fewest_wrong.sum(), wrong_as_configured.sum(), len(fewest_wrong)),
        advice,
    )
    return overrides


@torch.no_grad()
def warn_of_wrong_settings(
    classifier: Classifier, counts: Mapping[str, Any], trainer: Trainer
) -> None:
    """Warn where the base seems to be another one, or its images prepared otherwise.

    So it seems if its predictions are hardly better than guesses; or if a quarter of them are wrong
    and nearly as many of some training images, which somebody else's network should know.

    ``counts`` are those of the predictions for test or validation images: ``errors_per_class`` and
    ``images_per_class``.
    """
    base = classifier.base
    errors, images = counts["errors_per_class"], counts["images_per_class"]
    share = sum(errors) / sum(images)
    right = sum(images) - sum(errors)
    if not trainer.is_global_zero:
        return
    if is_near_chance(errors, images):
        reason = "which is hardly better than guessing"
    else:
        if share < _MANY_WRONG or base is None or base.is_pretrained_here:
            return
        some = _some_images([classifier.dataset.sets.train])
        with evaluating(classifier.net, trainer.strategy.root_device) as device:
            wrong = int(_is_wrong(classifier.net, classifier.dataset, some, device).sum())
        if wrong < _NEARLY_AS_MANY * share * len(some):
            return
        reason = f"and {wrong} of {len(some)} training images wrong as well"
    log.warning(
        "the base has %d of %d images right, %s: if it was better where it was trained, look at "
        "net._target_ and base_ckpt; at data.classes, in the order of the outputs; and at "
        "data.image_size, data.resize, data.channels, data.mean and data.std, or data.transform "
        "(docs/failed.md)",
        *(right, sum(images), reason),
    )


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
    net: nn.Module, dataset: ImageDataset, images: ImageTensors, device: torch.device
) -> Tensor:
    """Which images ``net`` gets wrong when ``dataset`` normalises them: bool, shape (N,)."""
    wrong = []
    for batch, labels in dataset.batches(images, device, name="preprocessing"):
        wrong.append((net(batch).argmax(dim=1) != labels).cpu())
    return torch.cat(wrong)
