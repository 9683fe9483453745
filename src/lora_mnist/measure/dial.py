"""The dial of a finished adapter: its scale, and an offset beside it.

With the scale ``s`` LoRA's weights are ``W + s * scaling * lora_B @ lora_A``: a straight line from
the base to the adapter as trained. Somewhere on it a repair often keeps most of what it mends and
loses most of what it breaks: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022
(PAINT), arXiv:2208.05592. A training also moves how often a class is predicted, whatever else it
learns; an offset moves that back, or further: :mod:`.lora.offset`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_mnist.errors import require_one_of
from lora_mnist.lora.model import usable_adapters
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.weight import lora_offsets
from lora_mnist.measure.gain import MEASURES, class_weights, gain, measure
from lora_mnist.measure.predictions import Point, counts_of_labels, logits_at

#: More scales near 0, where an adapter that breaks much is best; towards 1 the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
#: The dial of a run sees this number of validation images, or fewer.
MAX_IMAGES = 5000
#: The offsets that are tried: numbers on the logit of one class, or the tau of several.
_NUMBERS = [number / 4 for number in range(-40, 41)]
_TAUS = [tau / 20 for tau in range(-20, 61)]
#: What is counted at each scale; without targets the first alone.
_COUNTS = ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target")


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
    the device that it is in; call ``model.eval()`` first.

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
        ``images``, their number; ``choose_by``; ``scales``; for each of these the best ``offsets``,
        what it ``saved`` of the measure (see :mod:`.gain`), the ``deviation`` of its difference
        from the scale that saves most, the ``errors``
        and, with ``targets``, the ``errors_of_target``, ``errors_elsewhere`` and
        ``false_calls_of_target``; the same counts of the ``base``; ``advised`` and
        ``advised_offset``, the scale and the offset to take; and ``by_offset``, how the counts of
        the base and of the adapter at the scale that is advised go with the offset.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, there is no batch, or an argument is out
            of range.
    """
    require_one_of("choose_by", choose_by, MEASURES)
    usable_adapters(model)
    of_model = offset_of(model)
    direction = None if of_model is None else of_model.direction.cpu()
    offsets = offsets_of(of_model) if offsets is None else offsets
    columns: dict[float, list[Tensor]] = {scale: [] for scale in (0.0, *scales)}
    for labels, at_scales in logits_at(model, batches, [Point(scale) for scale in columns]):
        for column, logits in zip(columns.values(), at_scales, strict=True):
            column.append(contest(logits, labels, direction).cpu())
    if not columns[0.0]:
        raise ValueError("batches: expected at least one batch of images and labels")
    num_classes, group = logits.shape[-1], list(targets or ())
    rows_at = {scale: torch.cat(column) for scale, column in columns.items()}
    base = rows_at[0.0]
    label = base[:, 0].long()

    def counts_at(rows: Tensor, offset: float) -> dict[str, Any]:
        predicted = outcome(rows, direction, offset)
        counts = counts_of_labels(label, predicted, num_classes, group)
        return {key: counts[key] for key in (_COUNTS if group else _COUNTS[:1])}

    images = label.bincount(minlength=num_classes).numpy()
    was_right = outcome(base, direction, 0.0) == label

    def gain_of(is_right: Tensor, other: Tensor) -> tuple[float, float]:
        """What images that are right save beside others, and the deviation of that."""
        repaired = label[is_right & ~other].bincount(minlength=num_classes).numpy()
        broken = label[other & ~is_right].bincount(minlength=num_classes).numpy()
        saved, deviation = gain(repaired, broken, images, choose_by)
        return float(saved), float(deviation)

    errors = label[~was_right].bincount(minlength=num_classes).numpy()
    curve: dict[str, Any] = {
        "images": len(label),
        "choose_by": choose_by,
        "base": {**counts_at(base, 0.0), "measure": float(measure(errors, images, choose_by))},
        "scales": list(scales),
    }
    right_at = []
    for scale in scales:
        rows = rows_at[scale]
        offset = best_offset(rows, direction, offsets, num_classes, choose_by)
        is_right = outcome(rows, direction, offset) == label
        saved = gain_of(is_right, was_right)[0]
        if scale == 0 and saved < 0 and 0 in offsets:
            offset, is_right, saved = 0.0, was_right, 0.0  # the base itself is there to take
        right_at.append(is_right)
        numbers = {"offsets": offset, "saved": saved}
        for key, value in (numbers | counts_at(rows, offset)).items():
            curve.setdefault(key, []).append(value)
    best = right_at[curve["saved"].index(max(curve["saved"]))]
    curve["deviation"] = [gain_of(is_right, best)[1] for is_right in right_at]
    place = advised_place(curve)
    curve |= {"advised": curve["scales"][place], "advised_offset": curve["offsets"][place]}
    if len(offsets) > 1 and group:
        curve["by_offset"] = {"offsets": list(offsets)}
        for name, rows in {"base": base, "adapter": rows_at[curve["advised"]]}.items():
            every = [counts_at(rows, offset) for offset in offsets]
            by_key = {key: [counts[key] for counts in every] for key in _COUNTS}
            curve["by_offset"][name] = by_key
    return curve


def advised_place(curve: Mapping[str, Any]) -> int:
    """The place of the scale to take: of those that save as much as the best, the nearest to 1.

    Half a deviation of their difference by chance is no difference: a few images turn no repair
    off. Of two that are equally near, the smaller is taken.
    """
    scales, saved, deviation = curve["scales"], curve["saved"], curve["deviation"]
    places = []
    for place in range(len(scales)):
        if saved[place] >= max(saved) - 0.5 * deviation[place]:
            places.append(place)
    return min(places, key=lambda place: (abs(scales[place] - 1), scales[place]))


# --- offsets --------------------------------------------------------------------------------------


def offset_of(model: nn.Module) -> Offset | None:
    """The offset on ``model``; ``None`` where it has none."""
    offsets = lora_offsets(model)
    return offsets[-1] if offsets else None


def offset_for(counts: Tensor, targets: Sequence[int]) -> Offset:
    """An offset to repair ``targets``, by the training images of each class, float, (num_classes,).

    See :mod:`.lora.offset`. Rarity asks for the logarithm of how much rarer a class is than the
    mean one, or for a tau of 1: at most one more is tried, since a few images of a class that were
    not learnt can ask for any number. A class without images stays where it is.
    """
    mean = counts.sum() / (counts > 0).sum()
    rarity = torch.where(counts > 0, mean / counts, 1.0).log()
    if len(targets) > 1:
        return Offset(rarity, most=2.0)
    direction = torch.zeros_like(counts)
    direction[targets] = 1.0
    return Offset(direction, most=1 + max(0.0, rarity[targets].item()))


def offsets_of(offset: Offset | None) -> Sequence[float]:
    """The offsets to try; 0 alone where they would move no class."""
    if offset is None or not offset.direction.any():
        return [0.0]
    direction = offset.direction
    is_of_one = direction.count_nonzero() == 1 and (direction == 1).any()
    return [each for each in (_NUMBERS if is_of_one else _TAUS) if each <= offset.most]


def best_offset(
    rows: Tensor,
    direction: Tensor | None,
    offsets: Sequence[float],
    num_classes: int,
    choose_by: str,
) -> float:
    """The offset with the least cross-entropy, in which classes or images count alike.

    It is convex in the offset, so there is one minimum. What is right or wrong goes up and down by
    chance where a class has few images: docs/experiments.md has both rules.
    """
    label = rows[:, 0].long()
    counts = label.bincount(minlength=num_classes).cpu().numpy()
    weights = torch.from_numpy(class_weights(counts, choose_by)).to(rows)[label]
    losses = [float(cross_entropy(rows, direction, offset) @ weights) for offset in offsets]
    return offsets[losses.index(min(losses))]


def contest(logits: Tensor, labels: Tensor, direction: Tensor | None) -> Tensor:
    """What decides each prediction where an offset moves some logits: float, (N, 5 + T).

    The columns are the label, its logit, the best of the other classes, its logit, the logarithm of
    the sum of the exponentials of these classes, and the logits of the T classes that are moved. To
    repair one class of thousands takes no memory; tau moves all of them.
    """
    moved, logits = _moved(direction), logits.float()
    others = logits.clone()
    others[:, moved] = -torch.inf
    value, other = others.max(dim=1)
    label, sums = logits.gather(1, labels[:, None])[:, 0], others.logsumexp(dim=1)
    columns = torch.stack([labels.float(), label, other.float(), value, sums], dim=1)
    return torch.cat([columns, logits[:, moved]], dim=1)


def outcome(rows: Tensor, direction: Tensor | None, offset: float) -> Tensor:
    """The predictions, int64, (N,), with an offset, of the rows of :func:`contest`."""
    other, value = rows[:, 2].long(), rows[:, 3]
    best, place = _moved_logits(rows, direction, offset).max(dim=1)
    chosen = _moved(direction).to(rows.device)[place]
    # Of equal logits the first class is predicted, as argmax does.
    return torch.where((best > value) | ((best == value) & (chosen < other)), chosen, other)


def cross_entropy(rows: Tensor, direction: Tensor | None, offset: float) -> Tensor:
    """The cross-entropy of each image, (N,), with an offset, of the rows of :func:`contest`."""
    label = rows[:, 1]
    if direction is not None:
        label = label + offset * direction.to(rows)[rows[:, 0].long()]
    logits = torch.cat([rows[:, 4:5], _moved_logits(rows, direction, offset)], dim=1)
    return logits.logsumexp(dim=1) - label


def _moved_logits(rows: Tensor, direction: Tensor | None, offset: float) -> Tensor:
    """The logits of the classes that an offset moves, (N, T)."""
    if direction is None:
        return rows[:, 5:]
    return rows[:, 5:] + offset * direction.to(rows)[_moved(direction)]


class Collapse(NamedTuple):
    """When a training has collapsed: its measure is below ``least`` at its best offset."""

    least: float
    choose_by: str
    direction: Tensor | None = None
    offsets: Sequence[float] = (0.0,)

    def is_seen(self, rows: Tensor, num_classes: int) -> bool:
        """Whether validation images show it, by the rows of :func:`contest`."""
        label = rows[:, 0].long()
        offset = best_offset(rows, self.direction, self.offsets, num_classes, self.choose_by)
        predicted = outcome(rows, self.direction, offset)
        counts = counts_of_labels(label.cpu(), predicted.cpu(), num_classes)
        return bool(counts[self.choose_by] < self.least)


def _moved(direction: Tensor | None) -> Tensor:
    """The classes that an offset moves, sorted; the first where it moves none."""
    if direction is None or not direction.any():
        return torch.zeros(1, dtype=torch.int64)
    return direction.cpu().nonzero()[:, 0]


def images_of_dial(labels: Tensor, seed: int, choose_by: str) -> Tensor:
    """Which validation images the dial sees: the first in an order of the seed.

    The first of each class goes before all others: no rare class is left out. Where classes count
    alike, they also go second, third and so on.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    by_class, counts = labels[order].argsort(stable=True), labels.bincount()
    turn = torch.empty_like(order)  # of each image in its class
    turn[by_class] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order[by_class]]]
    if choose_by == "accuracy":
        turn.clamp_(max=1)
    return order[turn.argsort(stable=True)][:MAX_IMAGES].sort().values
