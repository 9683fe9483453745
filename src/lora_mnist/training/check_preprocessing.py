"""Checks the order of the classes, and the preprocessing, against the base's training."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any

import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lora_mnist.classifier.build import build_dataset
from lora_mnist.classifier.record import NO_RECORD
from lora_mnist.classifier.settings import Settings
from lora_mnist.config.run import quote_for_hydra
from lora_mnist.data import Folder, Images
from lora_mnist.data.dataset import measure_pixels
from lora_mnist.data.pictures import examine, open_picture
from lora_mnist.errors import UserError, format_value
from lora_mnist.measure.counts import confusion_matrix, count_both
from lora_mnist.measure.predictions import Predictions, compute_predictions
from lora_mnist.measure.significance import CERTAIN, CLEAR, LEVEL, mcnemar
from lora_mnist.project import quote
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: A search's budget in pixels, if the evaluation took fewer: 40 images of 224 x 224.
_PIXELS = 40 * 224 * 224
#: The number of images that a candidate is tried on first, and its minimum for large images.
_FIRST, _FIRST_LARGE = 16, 4
#: A candidate stays if a lead this many standard deviations larger could win.
_LUCK = 1.5
#: With fewer errors no other preprocessing is better beyond chance.
_FEWEST_ERRORS = 10
_SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
_SCALINGS = ((0.5, 0.5), (0.0, 1.0), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
#: Resize(224), or Resize(256) and CenterCrop(224), or Resize((224, 224)).
_RESIZINGS = [
    {"resize": "crop", "crop_pct": 1.0},
    {"resize": "crop", "crop_pct": 0.875},
    {"resize": "stretch", "crop_pct": 1.0},
]
#: A base guesses if its balanced accuracy is at most this multiple of chance.
_HARDLY_BETTER = 1.25


def check_base(session: Session, before: Predictions | None) -> list[str]:
    """Return overrides that make the base clearly better; warn if it only guesses."""
    if before is None:
        return []
    overrides = []
    if isinstance(session.classifier.dataset, Folder):
        overrides = check_order(session, before)
        if not overrides and session.cfg.stage == "eval":
            overrides = find_better_preprocessing(session, session.classifier.dataset, before)
    share = count_both(before)["before"]["balanced_accuracy"]
    if not overrides and share <= _HARDLY_BETTER / before.num_classes:
        text = "the base has %d of %d images right, which is hardly better than guessing: look at "
        text += "net._target_, base_ckpt and prepare (docs/failed.md)"
        log.warning(text, (before.prediction[0] == before.label).sum(), len(before))
    return overrides


def check_order(session: Session, before: Predictions) -> list[str]:
    """Return the override for another order of the classes, if it is certain; else warn of it."""
    classes, settings = session.classifier.classes, session.classifier.settings
    output, is_certain = find_better_order(before)
    if output is None:
        return []
    label, prediction = before.label, before.prediction[0]
    override = _format_order([classes[c] for c in output.argsort().tolist()])
    text = f"the network's outputs are {'most likely' if is_certain else 'perhaps'} in another "
    text += f"order of the classes: the base has {(prediction == output[label]).sum()} of "
    text += f"{len(before)} images right instead of {(prediction == label).sum()} with: "
    text += quote(override)
    if is_certain and session.cfg.stage == "lora" and settings.prepare.get("classes") is None:
        here = quote(_format_order(classes))
        raise UserError(
            f"prepare.classes=null: {text}; expected an order, or {here} for the current one"
        )
    log.warning("%s", text if is_certain else f"{text}; or it is bad at these classes")
    return [override] if is_certain else []


def _format_order(classes: Sequence[str]) -> str:
    """Return the override for an order of the classes."""
    return f"prepare.classes=[{','.join(map(quote_for_hydra, classes))}]"


def match_outputs(before: Predictions) -> tuple[Tensor, Tensor]:
    """Return each class's most likely output, and whether that is certain, both (C,)."""
    count = before.num_classes
    confusion = confusion_matrix(before.label, before.prediction[0], count)
    images = confusion.sum(dim=1, keepdim=True).clamp(min=1)
    shares = confusion / images
    # This gives the highest balanced accuracy; between equal outputs a class keeps its own.
    _, assigned = linear_sum_assignment(shares + 1e-6 * torch.eye(count), maximize=True)
    output = torch.from_numpy(assigned)
    shares = shares[:, output]  # [a, b]: images of class a that are predicted by b's output
    variances = shares / images
    own, variance = shares.diag(), variances.diag()
    lost = own[:, None] + own - shares - shares.T
    # An output is certain if exchanging it for any other would lower this beyond chance.
    deviation = (variance[:, None] + variance + variances + variances.T).sqrt()
    return output, (lost > CERTAIN * deviation).fill_diagonal_(True).all(dim=1)


def find_better_order(before: Predictions) -> tuple[Tensor | None, bool]:
    """Return each class's output, (C,), in a better order, or None; and whether it is certain."""
    count, label, prediction = before.num_classes, before.label, before.prediction[0]
    output, is_certain = match_outputs(before)
    is_moved = output != torch.arange(count)
    here, there = prediction == label, prediction == output[label]
    won, lost = int((there & ~here).sum()), int((here & ~there).sum())
    # A better order is found among many: Bonferroni's correction for those with as many moves.
    if won <= lost or mcnemar(won, lost) > LEVEL * float(count) ** -int(is_moved.sum()):
        return None, False
    # A network that is bad at a class mistakes it for another, too, but not most of its images.
    right, images = (each.bincount(minlength=count) for each in (label[there], label))
    return output, bool((is_certain & (2 * right > images))[is_moved].all())


@dataclass
class _Candidate:
    """A candidate preprocessing: values of ``prepare``, and the images that the base gets wrong."""

    values: dict[str, Any]
    pixels: int  # of an image
    wrong: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # images so far

    def compare(self, other: "_Candidate") -> tuple[int, int]:
        """Count the images that only this candidate has right, and those only the other has."""
        count = min(len(self.wrong), len(other.wrong))
        here, there = self.wrong[:count], other.wrong[:count]
        return int((there & ~here).sum()), int((here & ~there).sum())

    def lead(self, other: "_Candidate") -> float:
        """Return this candidate's lead over the other, in standard deviations of chance."""
        won, lost = self.compare(other)
        return (won - lost) / math.sqrt(max(1, won + lost))


class _Search:
    """A search by successive halving for the preprocessing that a base was trained with.

    A candidate that is behind is dropped, and the others are tried on twice as many images
    (Jamieson and Talwalkar 2016, arXiv:1502.07943).
    """

    def __init__(self, session: Session, dataset: Folder, images: Images, best: _Candidate) -> None:
        self.session, self.dataset, self.images, self.best = session, dataset, images, best
        self.device, self.tried = session.switch_to_eval(), [dataset.preprocessing()]
        evaluated = (len(images) + len(session.images.test)) * best.pixels
        self.pixels_left = max(evaluated, _PIXELS)
        self.open_image = lru_cache(256)(self._open_image)

    def run(self) -> _Candidate:
        """Return the best candidate, of which each change is ahead beyond chance."""
        for group in _list_candidates(self):
            candidates = []
            for change in group:
                values = {**self.best.values, **change}
                whole = {**self.dataset.preprocessing(), **values}
                if whole not in self.tried:
                    self.tried.append(whole)
                    candidates.append(_Candidate(values, math.prod(whole["image_size"])))
            winner = self._find_winner(candidates)
            # Each key is ahead by itself.
            if winner and mcnemar(*winner.compare(self.best)) < LEVEL / len(self.tried):
                self.best = winner
        return self.best

    def _find_winner(self, candidates: list[_Candidate]) -> _Candidate | None:
        """Return the candidate that is ahead of the others, or None if none can beat the best."""
        best, budget = self.best, self.pixels_left // 2
        while candidates:
            has_grown, share = False, budget // len(candidates)
            for each in [*candidates]:
                first = max(_FIRST_LARGE, min(_FIRST, _FIRST * best.pixels // each.pixels))
                count = min(2 * len(each.wrong) or first, len(self.images))
                cost = (count - len(each.wrong)) * each.pixels
                cost += max(0, count - len(best.wrong)) * best.pixels
                if not 0 < cost <= share:
                    continue
                try:
                    self._evaluate(each, count)
                except Exception:  # any error of a network that cannot take such images
                    candidates.remove(each)
                    continue
                self._evaluate(best, count)
                has_grown, budget, self.pixels_left = True, budget - cost, self.pixels_left - cost
            candidates = [each for each in candidates if self._may_win(each)]
            candidates.sort(key=lambda each: each.lead(best), reverse=True)
            leader = reduce(
                lambda one, other: other if other.lead(one) > 0 else one, candidates, best
            )
            candidates = [each for each in candidates if leader.lead(each) <= CLEAR]
            is_clear = leader.lead(best) > 2 * CERTAIN
            if len(candidates) == 1 and (is_clear or not has_grown):
                return candidates[0]
            if candidates and not has_grown:  # the others get its share of the pixels
                candidates.remove(
                    candidates[-1] if candidates[-1] is not leader else candidates[-2]
                )
        return None

    def _may_win(self, each: _Candidate) -> bool:
        """Return whether more images could show that a candidate is better than the best."""
        if not len(each.wrong):  # its images are too large for the budget
            return False
        hoped = (each.lead(self.best) + _LUCK) * math.sqrt(len(self.images) / len(each.wrong))
        return hoped >= CERTAIN

    def _evaluate(self, candidate: _Candidate, count: int) -> None:
        """Find which of the first images the base gets wrong, up to ``count`` of them."""
        places = range(len(candidate.wrong), count)
        if not places:
            return
        classifier, settings = self.session.classifier, self.session.classifier.settings
        given = {**settings.given["prepare"], "classes": self.dataset.classes, **candidate.values}
        own = Settings.from_command_line(settings.net, given, settings.data, settings.folder)
        other = build_dataset(own.with_makers_preprocessing(classifier.net))
        labels = self.images.labels[places.start : places.stop]
        pictures = (other.read_picture(self.open_image(place)) for place in places)
        batches = other.stack_pictures(zip(pictures, labels.tolist(), strict=True), self.device)
        prediction = compute_predictions(classifier.net, batches).prediction[0]
        candidate.wrong = torch.cat([candidate.wrong, prediction != labels])

    def _open_image(self, place: int) -> Image.Image:
        """Open the picture of an image, a photograph in about twice the largest size tried."""
        picture = open_picture(self.dataset.root / str(self.images.names[place]))
        picture = picture.convert("RGB" if self.dataset.channels == 3 else "L")
        largest = max(*_SIDES, *self.dataset.prepare.size)
        return picture.reduce(max(1, min(picture.size) // (2 * largest)))


def find_better_preprocessing(session: Session, dataset: Folder, before: Predictions) -> list[str]:
    """Return overrides for other common preprocessing if the base is clearly better with it."""
    base, settings, val = session.classifier.base, session.classifier.settings, session.images.val
    is_known = base is None or base.record != NO_RECORD
    if is_known or session.run.is_sweep or dataset.prepare.transform is not None:
        return []
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(0))
    wrong = (before.prediction[0] != before.label)[order]
    if wrong.sum() < _FEWEST_ERRORS:
        return []
    # Measured values are fixed, or each size would be measured anew.
    keys = [key for key in ("image_size", "mean", "std") if settings.prepare.get(key) is None]
    values = {key: dataset.preprocessing()[key] for key in keys}
    start = _Candidate(values, math.prod(dataset.prepare.size), wrong)
    best = _Search(session, dataset, val.subset(order), start).run()
    if best is start:
        return []
    overrides = []
    for key, value in best.values.items():
        if settings.prepare.get(key) != value:
            overrides.append(f"prepare.{key}={format_value(value)}")
    text = "the network may have been trained on images that were prepared otherwise: of %d it has "
    text += "%d wrong, and %d with: %s"
    shown, count = " ".join(map(quote, overrides)), len(best.wrong)
    log.warning(text, count, wrong[:count].sum(), best.wrong.sum(), shown)
    return overrides


def _list_candidates(search: _Search) -> Iterator[list[dict[str, Any]]]:
    """Yield groups of changes to ``prepare``, each to be tried on the best candidate so far."""
    dataset, images = search.dataset, search.images
    sizes = [(side, side) for side in _SIDES]
    _, *own = examine(dataset.root / str(images.names[0]))
    if max(own) <= max(*_SIDES, *dataset.prepare.size):  # no photograph in full size
        sizes.append((own[0], own[1]))
    yield [{"image_size": list(size)} for size in sizes]
    measured = measure_pixels(images.subset(torch.arange(min(200, len(images)))))
    yield [{"mean": mean, "std": std} for mean, std in (*_SCALINGS, measured)]
    for step in (16, 8, 4):
        height, width = search.best.values.get("image_size", dataset.prepare.size)
        larger, smaller = [height + step, width + step], [height - step, width - step]
        yield [{"image_size": size} for size in (larger, smaller) if min(size) > 0]
    yield _RESIZINGS
    yield [{"interpolation": "bicubic"}]
