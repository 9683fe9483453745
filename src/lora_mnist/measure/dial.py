"""The dial of a finished adapter: its scale, and an offset beside it.

With the scale ``s`` LoRA's weights are ``W + s * scaling * lora_B @ lora_A``: a straight line from
the base to the adapter as trained. Somewhere on it a repair often keeps most of what it mends and
loses most of what it breaks: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022
(PAINT), arXiv:2208.05592. A training also moves how often a class is predicted, whatever else it
learns; an offset moves that back, or further: :mod:`.lora.offset`.

**One number decides**: the balanced accuracy, or the accuracy, smoothed. Where ``w_i`` is what an
image of the class ``y_i`` counts (:func:`.significance.class_weights`), it is

    sum over images i of w_i * p_i^q    with p_i = softmax(z_i) at y_i and q = 0.25

The measure itself jumps where a class has five images. With ``q = 1`` this is what the measure
would be on the mean, if predictions were drawn from the network's probabilities; near ``q = 0`` it
ranks as the cross-entropy does, in which a few images that are sure and wrong outweigh all others.
It is one less the generalised cross-entropy, but for a factor: Zhang and Sabuncu 2018,
arXiv:1805.07836, equation 6. docs/experiments.md has what other numbers choose.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.errors import is_number, require, require_one_of
from lora_mnist.lora.model import usable_adapters
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import offset_of
from lora_mnist.measure.counts import MEASURES, OF_DIAL
from lora_mnist.measure.predictions import counts_of_labels, logits_at, refuse_nan
from lora_mnist.measure.significance import class_weights

#: More scales near 0, where an adapter that breaks much is best; towards 1 the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
#: The offsets that are tried: numbers on the logit of one class, or the tau of several.
_NUMBERS = [number / 4 for number in range(-40, 41)]
_TAUS = [tau / 20 for tau in range(-20, 61)]
#: The dial of a run sees this number of validation images, or fewer.
MAX_IMAGES = 2000
#: q of the smoothed measure.
_POWER = 0.25


def dial_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    offsets: Sequence[float] | None = None,
    choose_by: str = "balanced_accuracy",
) -> dict[str, Any]:
    """What an adapted network gains at several scales of its adapter, and where to turn it.

    Choose by validation images, never by test images. The network is evaluated in the mode and on
    the device that it is in; call ``model.eval()`` first. The logits of all images at all scales
    are kept in memory.

    Args:
        model: a network with LoRA: from images to logits of shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,).
        targets: the classes to repair; ``None`` where all count alike.
        scales: those to try: 0 is the base, 1 the adapter as trained, whatever scale it has now.
        offsets: those to try at each scale; ``None``: a range that is wide enough, or 0 alone where
            the model has no :class:`.lora.offset.Offset`.
        choose_by: ``balanced_accuracy``, where classes count alike, or ``accuracy``, where images
            do.

    Returns:
        ``images``, their number; ``choose_by``; ``rows``, one for each of ``scales``; ``base``, a
        row of the base; and ``advised``, the ``scale`` and the ``offset`` to take, where the
        smoothed measure is highest. A row has its ``scale``, the best ``offset`` there, the
        ``smoothed`` measure, which decides (see :mod:`.dial`), the ``measure`` itself, the
        ``errors`` and, with ``targets``, the ``errors_of_target``, ``errors_elsewhere`` and
        ``false_calls_of_target``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, there is no batch, an argument is out of
            range, or a logit is NaN.
    """
    usable_adapters(model)
    require_one_of("choose_by", choose_by, MEASURES)
    of_model = offset_of(model)
    offsets = offsets_to_try(of_model) if offsets is None else list(offsets)
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
    direction = torch.zeros(num_classes) if of_model is None else of_model.direction.float().cpu()

    def row_of(scale: float, logits: Tensor, tried: Sequence[float]) -> dict[str, Any]:
        """The numbers of a scale, at the best of some offsets."""
        values = smoothed(logits, label, direction, tried, choose_by)
        place = int(values.argmax())
        predicted = (logits + tried[place] * direction).argmax(dim=1)
        counts = counts_of_labels(label, predicted, num_classes, group)
        row = {"scale": scale, "offset": tried[place], "smoothed": values[place].item()}
        row["measure"] = counts[choose_by]
        return row | {key: counts[key] for key in OF_DIAL if key in counts}

    nearest_first = sorted(offsets, key=abs)  # of equal ones the first is taken
    rows = []
    for scale, logits in zip(scales, at_scales, strict=True):
        rows.append(row_of(scale, logits, nearest_first))
    best = max(rows, key=lambda row: row["smoothed"])
    return {
        "images": len(label),
        "choose_by": choose_by,
        "base": row_of(0.0, base, [0.0]),
        "rows": rows,
        "advised": {knob: best[knob] for knob in Point._fields},
    }


def row_at(curve: Mapping[str, Any], scale: float) -> Mapping[str, Any]:
    """The row of a scale that was tried, in what :func:`dial_curve` returns."""
    return next(row for row in curve["rows"] if row["scale"] == scale)


def offsets_to_try(offset: Offset | None) -> list[float]:
    """The values to try of ``offset``; 0 alone where they would move no class."""
    if offset is None or not offset.direction.any():
        return [0.0]
    tried = _NUMBERS if offset.moves_one_class else _TAUS
    return [each for each in tried if each <= offset.most]


def images_of_dial(labels: Tensor, seed: int, choose_by: str) -> Tensor:
    """Which validation images the dial sees: the first in an order of the seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator).tolist()
    classes, seen, turn = labels.tolist(), Counter[int](), {}
    for image in order:
        before = seen[classes[image]]  # so many images of its class
        seen[classes[image]] += 1
        # The first of each class goes before all others: no rare class is left out.
        turn[image] = min(before, 1) if choose_by == "accuracy" else before
    order.sort(key=lambda image: turn[image])  # images with the same turn stay in their order
    return torch.tensor(sorted(order[:MAX_IMAGES]), dtype=torch.int64)


def _logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], scales: Sequence[float]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The labels, (N,), and the logits of the base and at each scale, (N, num_classes)."""
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


def smoothed(
    logits: Tensor, label: Tensor, direction: Tensor, offsets: Sequence[float], choose_by: str
) -> Tensor:
    """The smoothed measure at each offset, float64, (O,)."""
    shares = logits.double().softmax(dim=1)
    # With an offset o a probability is p_y exp(o d_y) / sum over c of p_c exp(o d_c).
    moves = torch.outer(direction.double(), torch.tensor(offsets).double())
    factors = (moves - moves.max(dim=0).values).exp()
    right = shares.gather(1, label[:, None]) * factors[label]
    weights = class_weights(label.bincount(minlength=logits.shape[1]), choose_by)
    values = torch.from_numpy(weights)[label] @ (right / (shares @ factors)) ** _POWER
    refuse_nan(values)
    return values
