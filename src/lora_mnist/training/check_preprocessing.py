"""Checks that classes and images are prepared as in the training of the base."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lora_mnist.classifier.build import build_dataset
from lora_mnist.classifier.record import NO_RECORD
from lora_mnist.classifier.settings import Settings
from lora_mnist.config.run import in_grammar
from lora_mnist.data import Folder, Images
from lora_mnist.data.dataset import measured_pixels
from lora_mnist.data.pictures import examine, open_picture
from lora_mnist.errors import UserError, as_value
from lora_mnist.measure.counts import confusion_of, counts_of
from lora_mnist.measure.predictions import Predictions, predictions_of
from lora_mnist.measure.significance import CERTAIN, LEVEL, mcnemar
from lora_mnist.project import quoted
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: On how many validation images usual preprocessing is tried, and how many pixels these may have:
#: some thirty ways to prepare 100 images of 224 x 224 take a ResNet-18 a minute.
_IMAGES, _PIXELS = 200, 100 * 224 * 224
#: With fewer errors on these no other preprocessing is better beyond chance.
_FEWEST_ERRORS = 10
_SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
_SCALINGS = ((0.5, 0.5), (0.0, 1.0), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
#: Resize(224), or Resize(256) and CenterCrop(224), or Resize((224, 224)).
_RESIZINGS = [
    {"resize": "crop", "crop_pct": 1.0},
    {"resize": "crop", "crop_pct": 0.875},
    {"resize": "stretch", "crop_pct": 1.0},
]
#: A base guesses if its balanced accuracy is at most so many times that of chance.
_HARDLY_BETTER = 1.25


def check_base(session: Session, before: Predictions | None) -> list[str]:
    """Overrides with which the base does clearly better; without any, warn if it only guesses."""
    if before is None:
        return []
    overrides = []
    if isinstance(session.classifier.dataset, Folder):
        overrides = check_order(session, before)
        if not overrides and session.cfg.stage == "eval":
            overrides = better_preprocessing(session, session.classifier.dataset)
    share = counts_of(before)["before"]["balanced_accuracy"]
    if not overrides and share <= _HARDLY_BETTER / before.num_classes:
        text = "the base has %d of %d images right, which is hardly better than guessing: look at "
        text += "net._target_, base_ckpt and prepare (docs/failed.md)"
        log.warning(text, (before.prediction[0] == before.label).sum(), len(before))
    return overrides


def check_order(session: Session, before: Predictions) -> list[str]:
    """The override for another order of the classes, if that is certain; else a warning of it."""
    classes, settings = session.classifier.classes, session.classifier.settings
    output, is_certain = other_order(before)
    if output is None:
        return []
    label, prediction = before.label, before.prediction[0]
    override = _order([classes[c] for c in output.argsort().tolist()])
    text = f"the network's outputs are {'most likely' if is_certain else 'perhaps'} in another "
    text += f"order of the classes: the base has {(prediction == output[label]).sum()} of "
    text += f"{len(before)} images right instead of {(prediction == label).sum()} with: "
    text += quoted(override)
    if is_certain and session.cfg.stage == "lora" and settings.prepare.get("classes") is None:
        here = quoted(_order(classes))
        raise UserError(f"prepare.classes=null: {text}; expected an order, or {here} as it is")
    log.warning("%s", text if is_certain else f"{text}; or it is bad at these classes")
    return [override] if is_certain else []


def _order(classes: Sequence[str]) -> str:
    """The override for an order of the classes."""
    return f"prepare.classes=[{','.join(map(in_grammar, classes))}]"


def likely_outputs(before: Predictions) -> tuple[Tensor, Tensor]:
    """The output that each class most likely has, and whether that is certain, both (C,)."""
    count = before.num_classes
    confusion = confusion_of(before.label, before.prediction[0], count)
    images = confusion.sum(dim=1, keepdim=True).clamp(min=1)
    shares = confusion / images
    # This gives the highest balanced accuracy; between equal outputs a class keeps its own.
    _, assigned = linear_sum_assignment(shares + 1e-6 * torch.eye(count), maximize=True)
    output = torch.from_numpy(assigned)
    shares = shares[:, output]  # of each class, predicted by the output of each other
    variances = shares / images
    own, variance = shares.diag(), variances.diag()
    lost = own[:, None] + own - shares - shares.T
    # An output is certain if exchanging it for any other would lower this beyond chance.
    deviation = (variance[:, None] + variance + variances + variances.T).sqrt()
    return output, (lost > CERTAIN * deviation).fill_diagonal_(True).all(dim=1)


def other_order(before: Predictions) -> tuple[Tensor | None, bool]:
    """The output of each class, (C,), if an order is ahead of this one; whether it is certain."""
    count, label, prediction = before.num_classes, before.label, before.prediction[0]
    output, is_certain = likely_outputs(before)
    is_moved = output != torch.arange(count)
    here, there = prediction == label, prediction == output[label]
    won, lost = int((there & ~here).sum()), int((here & ~there).sum())
    # It is the best of about as many orders as move so many classes.
    if won <= lost or mcnemar(won, lost) > LEVEL * float(count) ** -int(is_moved.sum()):
        return None, False
    # A network that is bad at a class calls it by another's name, too, but not most of its images.
    right, images = (each.bincount(minlength=count) for each in (label[there], label))
    return output, bool((is_certain & (2 * right > images))[is_moved].all())


def better_preprocessing(session: Session, dataset: Folder) -> list[str]:
    """The overrides of other usual preprocessing, if the base does clearly better with it."""
    classifier, settings = session.classifier, session.classifier.settings
    is_known = classifier.base is None or classifier.base.record != NO_RECORD
    if is_known or session.run.is_sweep or dataset.prepare.transform is not None:
        return []
    val, device = session.images.val, session.to_evaluate()
    count = min(_IMAGES, len(val), math.ceil(_PIXELS / math.prod(dataset.prepare.size)))
    some = val.subset(torch.linspace(0, len(val) - 1, count).long())
    pictures, largest = [], max(*_SIDES, *dataset.prepare.size)
    for name in some.names:
        picture = open_picture(dataset.root / str(name))
        picture = picture.convert("RGB" if dataset.channels == 3 else "L")
        # Photographs in full size would fill the memory.
        pictures.append(picture.reduce(max(1, min(picture.size) // (2 * largest))))

    def is_wrong(prepare: Mapping[str, Any]) -> Tensor:
        """Which of the pictures the base gets wrong if they are prepared so."""
        typed = {**settings.typed["prepare"], "classes": dataset.classes, **prepare}
        own = Settings.of_typed(settings.net, typed, settings.data, settings.folder)
        other = build_dataset(own.with_makers_preprocessing(classifier.net))
        images = zip(map(other.read_picture, pictures), some.labels.tolist(), strict=True)
        table = predictions_of(classifier.net, other.stacked(images, device))
        return table.prediction[0] != some.labels

    # Measured values are fixed, or each size would be measured anew.
    keys = [key for key in ("image_size", "mean", "std") if settings.prepare.get(key) is None]
    best = {key: dataset.preprocessing()[key] for key in keys}
    as_configured = least = is_wrong(best)
    if as_configured.sum() < _FEWEST_ERRORS:
        return []
    tried = [{**best}]
    for ways in _usual_ways(dataset, some, best):
        wrong, prepare = least, best
        for way in ways:
            if {**best, **way} in tried:
                continue
            tried.append({**best, **way})
            with suppress(Exception):  # whatever a network raises that does not take such images
                of_way = is_wrong(tried[-1])
                if of_way.sum() < wrong.sum():
                    wrong, prepare = of_way, tried[-1]
        fewer, more = int((least & ~wrong).sum()), int((wrong & ~least).sum())
        if mcnemar(fewer, more) < LEVEL / len(tried):  # each key is ahead by itself
            least = wrong
            best.update(prepare)
    if least is as_configured:
        return []
    changed = {key: value for key, value in best.items() if settings.prepare.get(key) != value}
    overrides = [f"prepare.{key}={as_value(value)}" for key, value in changed.items()]
    text = "the network may have been trained on images that were prepared otherwise: of %d it has "
    text += "%d wrong, and %d with: %s"
    shown = " ".join(map(quoted, overrides))
    log.warning(text, len(some), as_configured.sum(), least.sum(), shown)
    return overrides


def _usual_ways(
    dataset: Folder, images: Images, best: Mapping[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Values of ``prepare`` to try, by what they change; ``best`` has the best of those before."""
    sizes = [(side, side) for side in _SIDES]
    _, *own = examine(dataset.root / str(images.names[0]))
    if max(own) <= max(*_SIDES, *dataset.prepare.size):  # no photograph in full size
        sizes.append((own[0], own[1]))
    yield [{"image_size": list(size)} for size in sizes]
    yield [{"mean": mean, "std": std} for mean, std in (*_SCALINGS, measured_pixels(images))]
    for step in (16, 8, 4):
        height, width = best.get("image_size", dataset.prepare.size)
        sizes = [(height + step, width + step), (height - step, width - step)]
        yield [{"image_size": list(size)} for size in sizes]
    yield _RESIZINGS
    yield [{"interpolation": "bicubic"}]
