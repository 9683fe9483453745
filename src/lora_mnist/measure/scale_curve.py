"""The scale curve of a finished adapter, and the best offset at each scale.

With the scale ``s`` LoRA's weights are ``W + s * scaling * lora_B @ lora_A``: a straight line from
the base to the adapter as trained. Between the two a repair often keeps most of its gains, and
loses most of its costs: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022
(PAINT), arXiv:2208.05592. A training also changes how often a class is predicted; an offset
corrects that: :mod:`.lora.offset`.

The best point is where the score is highest: :mod:`.score`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_mnist.errors import is_number, require, require_choice
from lora_mnist.lora.model import require_adapters
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import find_offset
from lora_mnist.measure.class_weights import MEASURES, class_weights, weighted_accuracy
from lora_mnist.measure.counts import CURVE_COUNTS, count_changes, count_errors
from lora_mnist.measure.predictions import logits_at
from lora_mnist.measure.score import compute_image_scores, compute_scores
from lora_mnist.measure.significance import LEVEL, p_value_of_accuracy

#: Denser near 0, where an adapter that breaks much is best; towards 1 the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
#: The offsets to try: numbers on the logit of one class, or taus of several.
_NUMBERS = [number / 4 for number in range(-40, 41)]
_TAUS = [tau / 20 for tau in range(-20, 61)]
#: The search for a point uses this number of validation images, or fewer.
MAX_IMAGES = 2000


def scale_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    offsets: Sequence[float] | None = None,
    choose_by: str = "mean_accuracy",
    test_prior: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Evaluate an adapted network at several scales, and advise an operating point.

    Choose by validation images, never by test images. The network is evaluated in the mode and on
    the device that it is in; call ``model.eval()`` first. The logits of all images at all scales
    are kept in memory.

    Args:
        model: a network with LoRA: from images to logits of shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,).
        targets: the classes whose errors a row counts; they decide nothing.
        scales: those to try: 0 is the base, 1 the adapter as trained, whatever scale it has now.
        offsets: those to try at each scale; ``None``: a range that is wide enough, or 0 alone where
            the model has no :class:`.lora.offset.Offset`.
        choose_by: ``accuracy``, under ``test_prior``; ``balanced_accuracy``, where all classes
            count equally; or ``mean_accuracy``, the mean of both.
        test_prior: how common each class is in use, as numbers of images or shares; ``None``: as in
            ``batches``.

    Returns:
        ``images``, their number; ``choose_by``; ``rows``, one for each of ``scales``; ``base``, a
        row of the base; and ``advised``, the ``scale`` and the ``offset`` with the highest score.
        A row has its ``scale``, the best ``offset`` there, the ``score``, which decides
        (see :mod:`.score`), the ``weighted_accuracy`` that ``choose_by`` names, the ``errors`` and,
        with ``targets``, the ``errors_of_target``, ``errors_elsewhere`` and
        ``false_positives_of_target``. ``is_behind`` is true if its weighted accuracy is lower,
        beyond chance, than that of the base or of the offset alone. Such a row is not advised,
        unless all are behind and 0 is not among ``offsets``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, an adapter is switched off, there is no
            batch, an argument is out of range, or a logit is NaN.
    """
    if not all(adapter.enabled for adapter in require_adapters(model)):
        raise ValueError("an adapter is switched off; expected set_lora_enabled(model, True)")
    require_choice("choose_by", choose_by, MEASURES)
    model_offset = find_offset(model)
    offsets = offsets_to_try(model_offset) if offsets is None else list(offsets)
    for name, numbers in {"scales": scales, "offsets": offsets}.items():
        are_finite = len(numbers) > 0 and all(map(is_number, numbers))
        require(are_finite, name, numbers, "finite numbers, at least one")
    label, base, at_scales = _logits(model, batches, scales)
    num_classes, group, labels = base.shape[1], list(targets or ()), torch.unique(label).tolist()
    expected = f"classes from 0 to {num_classes - 1}"
    are_classes = all(c in range(num_classes) and not isinstance(c, bool) for c in group)
    require(are_classes, "targets", group, expected)
    are_classes = label.dtype == torch.int64 and all(c in range(num_classes) for c in labels)
    require(are_classes, "labels", labels, f"{expected}, int64")
    images = torch.bincount(label, minlength=num_classes)
    if test_prior is not None:
        are_shares = len(test_prior) == num_classes and all(
            is_number(m) and m >= 0 for m in test_prior
        )
        require(are_shares, "test_prior", test_prior, f"{num_classes} numbers >= 0, one a class")
    weights = class_weights(test_prior, choose_by, images)
    direction = (
        torch.zeros(num_classes) if model_offset is None else model_offset.direction.float().cpu()
    )
    measured = _Evaluator(label, direction, weights, group)
    nearest_first = sorted(offsets, key=abs)  # the first one, if several are equal
    base_evaluation = measured.evaluate(base, [0.0])
    alone = measured.evaluate(base, nearest_first)
    if 0 in offsets and measured.is_behind(alone, base_evaluation):
        alone = base_evaluation
    rows = []
    for scale, logits in zip(scales, at_scales, strict=True):
        point = measured.evaluate(logits, nearest_first) if scale else alone
        is_behind = measured.is_behind(point, base_evaluation) or measured.is_behind(point, alone)
        rows.append({"scale": scale, **point.numbers, "is_behind": is_behind})
    base_row = {"scale": 0.0, **base_evaluation.numbers, "is_behind": False}
    candidates = [row for row in rows if not row["is_behind"]]
    if not candidates:
        candidates = [base_row] if 0 in offsets else rows
    best = max(candidates, key=lambda row: row["score"])
    return {
        "images": len(label),
        "choose_by": choose_by,
        "base": base_row,
        "rows": rows,
        "advised": {field: best[field] for field in Point._fields},
    }


def score_images(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    point: Point,
    finds_offset: bool,
    choose_by: str,
    test_prior: Sequence[float] | None,
) -> tuple[float, Tensor]:
    """Return the score at a point, or at its scale and the best offset, and each image's term."""
    label, _, (logits,) = _logits(model, batches, [point.scale])
    offset_of_model, num_classes = find_offset(model), logits.shape[1]
    direction = torch.zeros(num_classes)
    if offset_of_model is not None:
        direction = offset_of_model.direction.float().cpu()
    offsets = offsets_to_try(offset_of_model) if finds_offset else [point.offset]
    weights = class_weights(test_prior, choose_by, label.bincount(minlength=num_classes))
    scores = compute_scores(logits, label, direction, offsets, weights)
    offset = offsets[int(scores.argmax())]
    return scores.max().item(), compute_image_scores(logits, label, direction, offset, weights)


def row_at(curve: Mapping[str, Any], scale: float) -> Mapping[str, Any]:
    """Return the row of a scale from the result of :func:`scale_curve`."""
    return next(row for row in curve["rows"] if row["scale"] == scale)


def offsets_to_try(offset: Offset | None) -> list[float]:
    """Return the values of ``offset`` to try; only 0 if the direction is 0."""
    if offset is None or not offset.direction.any():
        return [0.0]
    tried = _NUMBERS if offset.moves_one_class else _TAUS
    return [each for each in tried if each <= offset.most]


def select_search_images(labels: Tensor, seed: int) -> Tensor:
    """Return the indices of at most 2,000 images: of each class the first ones, in random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    classes, seen, turn = labels.tolist(), Counter[int](), {}
    for image in order:
        turn[image] = seen[classes[image]]  # so many images of its class are before it
        seen[classes[image]] += 1
    order.sort(key=lambda image: turn[image])  # stable: images with the same number stay in order
    return torch.tensor(sorted(order[:MAX_IMAGES]), dtype=torch.int64)


def _logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], scales: Sequence[float]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the labels, (N,), and the logits of the base and at each scale, (N, num_classes)."""
    labels: list[Tensor] = []
    columns: dict[float, list[Tensor]] = {scale: [] for scale in (0.0, *scales)}
    for of_batch, at_points in logits_at(model, batches, [Point(scale) for scale in columns]):
        labels.append(of_batch.cpu())
        for column, logits in zip(columns.values(), at_points, strict=True):
            column.append(logits.float().cpu())
    if not labels:
        raise ValueError("batches: expected at least one batch of images and labels")
    whole = {scale: torch.cat(column) for scale, column in columns.items()}
    return torch.cat(labels), whole[0.0], [whole[scale] for scale in scales]


class _Evaluation(NamedTuple):
    """A network at its best offset."""

    numbers: dict[str, Any]  # of a row
    prediction: Tensor


@dataclass(frozen=True)
class _Evaluator:
    """The labels and class weights by which points are measured."""

    label: Tensor
    direction: Tensor
    weights: NDArray[np.float64]  # the weight of each class
    targets: Sequence[int]

    def evaluate(self, logits: Tensor, offsets: Sequence[float]) -> _Evaluation:
        """Evaluate the network with these logits at the best of some offsets."""
        scores = compute_scores(logits, self.label, self.direction, offsets, self.weights)
        offset, score = offsets[int(scores.argmax())], scores.max().item()
        prediction = (logits + offset * self.direction).argmax(dim=1)
        counts = count_errors(self.label, prediction, logits.shape[1], self.targets)
        errors, images = counts["errors_per_class"], counts["images_per_class"]
        numbers = {"offset": offset, "score": score}
        numbers["weighted_accuracy"] = weighted_accuracy(errors, images, self.weights)
        numbers |= {key: counts[key] for key in CURVE_COUNTS if key in counts}
        return _Evaluation(numbers, prediction)

    def is_behind(self, point: _Evaluation, other: _Evaluation) -> bool:
        """Return whether its weighted accuracy is lower than the other's, beyond chance."""
        if point.numbers["weighted_accuracy"] >= other.numbers["weighted_accuracy"]:
            return False
        num_classes = len(self.weights)
        changes = count_changes(self.label, other.prediction, point.prediction, num_classes)
        images = self.label.bincount(minlength=num_classes)
        return p_value_of_accuracy(*changes, images, self.weights) <= LEVEL
