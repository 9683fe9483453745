"""Whether classes and images of a network of one's own are those of its training."""

import copy
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lora_mnist.command import in_grammar
from lora_mnist.data import Folder, Images
from lora_mnist.data.images import measured_pixels, size_of_picture
from lora_mnist.errors import as_value
from lora_mnist.project import quoted
from lora_mnist.repair.predictions import Predictions, confusion_of, counts_of, predictions_at
from lora_mnist.repair.significance import LEVEL, is_near_chance, mcnemar
from lora_mnist.session import Session

log = logging.getLogger(__name__)

#: Usual ways to prepare images, beside their own size, mean and deviation. A network may take any
#: size; it comes from Resize(224), Resize(256) and CenterCrop(224), or Resize((224, 224)).
_CHANGES: tuple[dict[str, Any], ...] = (
    *({"image_size": [side, side]} for side in (32, 48, 64, 96, 128, 160, 192, 224, 256)),
    {"mean": 0.5, "std": 0.5},
    {"mean": 0.0, "std": 1.0},
    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"resize": "crop", "crop_pct": 1.0},
    {"resize": "crop", "crop_pct": 0.875},
    {"resize": "stretch", "crop_pct": 1.0},
    {"interpolation": "bilinear"},
    {"interpolation": "bicubic"},
)
#: As many validation images are tried, and as many training images, where a network's own
#: preprocessing stands out most.
_IMAGES = 50


def check_preprocessing(session: Session, before: Predictions | None) -> list[str]:
    """Warn of what the base's training seems to have had otherwise; return what would help."""
    if not session.trainer.is_global_zero:
        return []
    overrides = []
    if before is not None:
        overrides = better_order(before, session.classifier.classes)
    overrides = overrides or better_preparation(session)
    if before is not None and not overrides:
        warn_of_guessing(before)
    return overrides


def better_order(before: Predictions, classes: Sequence[str]) -> list[str]:
    """The override of another order of the classes, if it halves the errors of those it moves."""
    from scipy.optimize import linear_sum_assignment

    count = len(classes)
    label, prediction = before.label, before.prediction[0]
    confusion = confusion_of(label, prediction, count)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    here = torch.arange(count)
    # Of equals, the order as it is.
    _, assigned = linear_sum_assignment(shares + 1e-6 * torch.eye(count), maximize=True)
    output = torch.from_numpy(assigned)  # of each class
    moved = output != here
    rate, other_rate = 1 - shares[here, here][moved].mean(), 1 - shares[here, output][moved].mean()
    was_right, is_right = prediction == label, prediction == output[label]
    repaired, broken = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    if not moved.any() or other_rate > rate / 2 or mcnemar(repaired, broken) >= 0.001:
        return []
    names = [in_grammar(classes[c]) for c in output.argsort().tolist()]
    order = f"prepare.classes=[{','.join(names)}]"
    log.warning(
        "the network's outputs are most likely in another order of the classes: the base has %d of "
        "%d images right instead of %d with: %s",
        *(is_right.sum(), len(before), was_right.sum(), quoted(order)),
    )
    return [order]


def better_preparation(session: Session) -> list[str]:
    """The overrides of another usual preparation, if the base does clearly better with it."""
    classifier, base = session.classifier, session.classifier.base
    net, dataset = classifier.net, classifier.dataset
    assert base is not None
    is_ours = str(classifier.settings.net["_target_"]).startswith("lora_mnist.")
    is_known = is_ours or base.is_pretrained_here or classifier.adapter is not None
    configured = dataset.preprocessing()
    some = _spread(dataset.sets.train).followed_by(_spread(dataset.sets.val))
    if is_known or session.run.is_sweep or "mean" not in configured or not len(some):
        return []

    @cache
    def resized(**sizing: Any) -> Images:
        """The images in memory, brought to their size in a way."""
        images = dataset.resized(some, **sizing) if isinstance(dataset, Folder) else some
        return Images(*images.take(range(len(images))))

    def is_wrong(way: dict[str, Any]) -> Tensor:
        """Which images the base gets wrong when they are prepared so: bool, shape (N,)."""
        sizing = {key: way.get(key) for key in ("resize", "crop_pct", "interpolation")}
        images = resized(size=tuple(way.get("image_size", ())), **sizing)
        other = copy.copy(dataset)
        other.mean, other.std = way["mean"], way["std"]
        table = predictions_at(net, other.batches(images, device, name="preprocessing"), [0])
        return table.prediction[0] != table.label

    mean, std = measured_pixels(some)
    changes = [*_CHANGES, {"mean": mean, "std": std}]
    if isinstance(dataset, Folder):
        own_size = size_of_picture(dataset.root / str(some.names[0]))
        if max(own_size) <= 256:
            changes.insert(0, {"image_size": list(own_size)})
    best, tried = configured, [configured]
    with session.evaluating() as device:
        wrong_as_configured = wrong_at_best = is_wrong(configured)
        if len(changes) * mcnemar(int(wrong_at_best.sum()), 0) >= LEVEL:
            return []  # so few errors that no way can be clearly better
        for change in 2 * changes:  # at another size, another mean may be better
            way = {**best, **change}
            if way in tried:
                continue
            try:
                wrong = is_wrong(way)
            except Exception:  # whatever layers raise that do not take this size, or these channels
                continue
            tried.append(way)
            if wrong.sum() < wrong_at_best.sum():
                best, wrong_at_best = way, wrong
    repaired = int((wrong_as_configured & ~wrong_at_best).sum())
    broken = int((wrong_at_best & ~wrong_as_configured).sum())
    if len(tried) * mcnemar(repaired, broken) >= LEVEL:  # the best of several ways is tested
        return []
    keys = [key for key in best if best[key] != configured[key]]
    overrides = [f"prepare.{key}={as_value(best[key])}" for key in keys]
    log.warning(
        "the network may have been trained on images that were prepared otherwise: it makes %d "
        "errors instead of %d in %d validation and training images, the fewest of %d ways that "
        "were tried, with: %s",
        *(wrong_at_best.sum(), wrong_as_configured.sum(), len(some), len(tried)),
        " ".join(map(quoted, overrides)),
    )
    return overrides


def warn_of_guessing(before: Predictions) -> None:
    """Warn where the base is hardly better than guessing."""
    counts = counts_of(before)["before"]
    if is_near_chance(counts["errors_per_class"], counts["images_per_class"]):
        log.warning(
            "the base has %d of %d images right, which is hardly better than guessing: if it was "
            "better where it was trained, look at net._target_ and base_ckpt; at prepare.classes, "
            "in the order of the outputs; and at prepare.image_size, prepare.resize, "
            "prepare.channels, prepare.mean and prepare.std, or prepare.transform (docs/failed.md)",
            *(len(before) - counts["errors"], len(before)),
        )


def _spread(images: Images) -> Images:
    """Some images from everywhere in a set, whose classes stand in a row."""
    return images.subset(torch.linspace(0, len(images) - 1, min(_IMAGES, len(images))).long())
