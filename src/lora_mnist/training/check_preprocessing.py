"""Checks that classes and images are prepared as in the training of the base."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_mnist.classifier.classifier import Classifier, build_dataset
from lora_mnist.classifier.networks import check_outputs
from lora_mnist.classifier.settings import Settings
from lora_mnist.config.run import in_grammar
from lora_mnist.data import Folder, Images
from lora_mnist.data.images import measured_pixels, size_of_picture
from lora_mnist.errors import as_value
from lora_mnist.measure.predictions import Predictions, confusion_of, counts_of, predictions_of
from lora_mnist.measure.significance import LEVEL, is_near_chance, mcnemar
from lora_mnist.project import quoted
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: On how many validation images usual preparations are tried, and for how many seconds at most.
_IMAGES, _SECONDS = 50, 60
_SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
_SCALINGS = ((0.5, 0.5), (0.0, 1.0), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
#: Resize(224), or Resize(256) and CenterCrop(224), or Resize((224, 224)).
_RESIZINGS = (
    {"resize": "crop", "crop_pct": 1.0},
    {"resize": "crop", "crop_pct": 0.875},
    {"resize": "stretch", "crop_pct": 1.0},
    {"interpolation": "bicubic"},
)


def check_base(session: Session, before: Predictions | None) -> list[str]:
    """Overrides with which the base does clearly better; without any, warn if it only guesses.

    ``before`` are its predictions for validation images. Other preparations are tried where nothing
    is trained.
    """
    if before is None:
        return []
    advice = better_order(before, session.classifier.classes)
    if not advice and session.cfg.stage == "eval":
        advice = better_preparation(session)
    counts = counts_of(before)["before"]
    if not advice and is_near_chance(counts["errors_per_class"], counts["images_per_class"]):
        log.warning(
            "the base has %d of %d images right, which is hardly better than guessing: if it was "
            "better where it was trained, look at net._target_, base_ckpt and prepare, of which "
            "eval.py tries usual values (docs/failed.md)",
            len(before) - counts["errors"],
            len(before),
        )
    return advice


def better_order(before: Predictions, classes: Sequence[str]) -> list[str]:
    """The override of another order of the classes, if it is clearly better.

    The classes that change places then have at most two thirds of their error rate.
    """
    from scipy.optimize import linear_sum_assignment

    count = len(classes)
    label, prediction = before.label, before.prediction[0]
    confusion = confusion_of(label, prediction, count)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    here = torch.arange(count)
    # A class stays where it is if two outputs suit it equally well.
    _, assigned = linear_sum_assignment(shares + 1e-6 * torch.eye(count), maximize=True)
    output = torch.from_numpy(assigned)  # of each class
    moved = output != here
    rate = 1 - shares[here, here][moved].mean()
    other_rate = 1 - shares[here, output][moved].mean()
    was_wrong, is_wrong = prediction != label, prediction != output[label]
    if not moved.any() or other_rate > rate * 2 / 3 or _p_value(was_wrong, is_wrong) >= 0.001:
        return []
    names = [in_grammar(classes[c]) for c in output.argsort().tolist()]
    order = f"prepare.classes=[{','.join(names)}]"
    log.warning(
        "the network's outputs are most likely in another order of the classes: the base has %d of "
        "%d images right instead of %d with: %s",
        (~is_wrong).sum(),
        len(before),
        (~was_wrong).sum(),
        quoted(order),
    )
    return [order]


def better_preparation(session: Session) -> list[str]:
    """The overrides of another usual preparation, if the base does clearly better with it."""
    classifier, val = session.classifier, session.images.val
    dataset, settings = classifier.dataset, classifier.settings
    if not isinstance(dataset, Folder) or dataset.prepare.transform is not None or not len(val):
        return []
    if classifier.base is None or classifier.base.record or session.run.is_sweep:
        return []
    some = val.subset(torch.linspace(0, len(val) - 1, min(_IMAGES, len(val))).long())
    # Measured values are fixed, or each size would be measured anew.
    keys = [key for key in ("image_size", "mean", "std") if settings.prepare.get(key) is None]
    best = {key: dataset.preprocessing()[key] for key in keys}
    ways, started = _usual_ways(dataset, some), time.monotonic()
    device = session.evaluating()
    table = predictions_of(classifier.net, dataset.batches(some, device))
    as_configured = least = table.prediction[0] != table.label
    if len(ways) * mcnemar(int(least.sum()), 0) >= LEVEL:
        return []  # so few errors that no way can be clearly better
    for way in ways:
        if time.monotonic() - started > _SECONDS:
            log.warning("a minute is over: no other way to prepare images is tried")
            break
        wrong = _wrong_if_prepared(classifier, some, {**best, **way}, device)
        if wrong is not None and wrong.sum() < least.sum():
            best, least = {**best, **way}, wrong
    if len(ways) * _p_value(as_configured, least) >= LEVEL:  # the best of several ways is tested
        return []
    overrides = []
    for key, value in best.items():
        if settings.prepare.get(key) != value:
            overrides.append(f"prepare.{key}={as_value(value)}")
    log.warning(
        "the network may have been trained on images that were prepared otherwise: it makes %d "
        "errors instead of %d in %d validation images with: %s",
        least.sum(),
        as_configured.sum(),
        len(some),
        " ".join(map(quoted, overrides)),
    )
    return overrides


def _usual_ways(dataset: Folder, images: Images) -> list[dict[str, Any]]:
    """Values of ``prepare`` to try: each size with each scaling, then ways to resize to it."""
    configured = dataset.prepare.size
    own = size_of_picture(dataset.root / str(images.names[0]))
    sizes = [(side, side) for side in _SIDES if side < max(configured)]
    if own != configured and max(own) <= max(*_SIDES, *configured):  # no photograph in full size
        sizes.insert(0, own)
    ways: list[dict[str, Any]] = []
    for size in (*sizes, configured):
        for mean, std in (*_SCALINGS, measured_pixels(images)):
            ways.append({"image_size": list(size), "mean": mean, "std": std})
    return [*ways, *_RESIZINGS]


def _wrong_if_prepared(
    classifier: Classifier, images: Images, prepare: Mapping[str, Any], device: torch.device
) -> Tensor | None:
    """Which images the base gets wrong if they are prepared so; ``None`` if it takes none."""
    net, dataset, settings = classifier.net, classifier.dataset, classifier.settings
    typed = {**settings.typed["prepare"], "classes": dataset.classes, **prepare}
    assert isinstance(dataset, Folder)
    files = [dataset.root / str(name) for name in images.names]
    try:
        other = build_dataset(net, Settings(settings.net, typed, settings.data))
        pictures = zip(map(other.read_picture, files), images.labels.tolist(), strict=True)
        batches = list(other.stacked(pictures, device))
        check_outputs(net, batches[0][0][:1], len(other.classes), other.name)
        table = predictions_of(net, batches)
    except Exception:  # whatever a network raises that does not take this size, or these channels
        return None
    return table.prediction[0] != table.label


def _p_value(before: Tensor, after: Tensor) -> float:
    """McNemar's p-value, from the images that two networks get wrong: bool, shape (N,)."""
    return mcnemar(int((before & ~after).sum()), int((after & ~before).sum()))
