"""The dial of a finished adapter: errors at several scales, and which scale to take.

With the scale ``s`` the weights are ``W + s * scaling * lora_B @ lora_A``: a straight line from the
base to the adapter as trained. Somewhere on it a repair often keeps most of what it mends and loses
most of what it breaks: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022
(PAINT), arXiv:2208.05592.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.lora.model import usable_adapters
from lora_mnist.measure.predictions import (
    Predictions,
    confusion_of,
    counts_of_confusion,
    predictions_at,
)

#: More scales near 0, where an adapter that breaks much is best; towards 1 the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
#: The dial of a run sees this number of validation images, or fewer.
MAX_IMAGES = 5000
#: What is counted at each scale; without targets the first alone.
_COUNTS = ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target")
#: A scale is advised only if errors elsewhere are at most 1.1 times the base's, where the base has
#: 100 of them or more: with fewer, harm cannot be told from chance.
_MAX_ELSEWHERE, _ENOUGH_ERRORS = 1.1, 100


def dial_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
) -> dict[str, Any]:
    """Errors of an adapted network at several scales of its adapter, and the scale to take.

    Choose a scale by validation images, never by test images. The network is evaluated in the mode
    and on the device that it is in; call ``model.eval()`` first.

    Args:
        model: a network with LoRA: from images to logits of shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,).
        targets: the classes to repair; ``None`` where all count alike.
        scales: those to try, 0 among them: 0 is the base, 1 the adapter as trained, whatever scale
            it has now.

    Returns:
        ``images``, their number; ``scales``; for each of these the ``errors``, the images
        ``repaired_or_broken`` and, with ``targets``, the ``errors_of_target``, ``errors_elsewhere``
        and ``false_calls_of_target``; and ``advised``, the scale to take.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, there is no batch, or 0 is not among
            ``scales``.
    """
    usable_adapters(model)
    table = predictions_at(model, batches, scales)
    return _curve(scales, table.prediction, table, targets or ())


def measure_dial(
    net: nn.Module,
    batches: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]],
    table: Predictions,
    targets: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """The curve on validation images, whose ``table`` knows scale 0 and, as its after, scale 1."""
    chosen = images_of_dial(len(table), seed)
    some = table.at(chosen)
    between = predictions_at(net, batches(chosen), SCALES[1:-1]).prediction
    before, after = some.prediction
    return _curve(SCALES, torch.stack([before, *between, after]), some, targets)


def images_of_dial(count: int, seed: int) -> Tensor:
    """Which of ``count`` validation images the dial sees: the first in an order of the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:MAX_IMAGES].sort().values


def _curve(
    scales: Sequence[float], prediction: Tensor, table: Predictions, targets: Sequence[int]
) -> dict[str, Any]:
    """The curve as results.json has it, from the predictions at each scale for a table's images."""
    if 0 not in scales:
        raise ValueError(f"scales={list(scales)}: expected 0 among them, the base")
    is_wrong = prediction != table.label
    of_base = is_wrong[list(scales).index(0)]
    curve: dict[str, Any] = {
        "images": len(table),
        "scales": list(scales),
        "repaired_or_broken": (is_wrong != of_base).sum(dim=1).tolist(),
    }
    for at_scale in prediction:
        confusion = confusion_of(table.label, at_scale, table.num_classes)
        counts = counts_of_confusion(confusion, targets)
        for key in _COUNTS if targets else _COUNTS[:1]:
            curve.setdefault(key, []).append(counts[key])
    return {**curve, "advised": advised_scale(curve)}


def advised_scale(curve: Mapping[str, Any]) -> float:
    """The scale to take: among those that save enough errors, the one nearest to 1.

    A scale saves enough if ``saved >= 0.5 * most - 0.5 * sqrt(repaired + broken)``. ``most`` is
    what the best scale saves. The root is the standard deviation of ``saved = repaired - broken``
    where both are equally likely, so a few validation errors by chance turn no repair off.

    A scale that saves no error on the classes to repair is left out, and so is one that harms the
    others too much. Of two that are equally near, the smaller is taken.
    """
    scales, errors, of_target = curve["scales"], curve["errors"], curve.get("errors_of_target")
    places = sorted(range(len(scales)), key=lambda i: scales[i])
    places = [i for i in places if not _harms_others(curve, i)]
    advised = base = scales.index(0)
    most = errors[base] - min(errors[i] for i in places)
    for i in places:
        enough = 0.5 * (most - curve["repaired_or_broken"][i] ** 0.5)
        if errors[base] - errors[i] < enough:
            continue
        if of_target is not None and of_target[i] >= of_target[base] > 0:
            continue
        if abs(scales[i] - 1) < abs(scales[advised] - 1):
            advised = i
    return float(scales[advised])


def scale_of_refit(curve: Mapping[str, Any]) -> float:
    """The scale of an adapter that is trained once more, with the validation images: mostly 1.

    It leaves fewer errors than the adapter that ``curve`` has measured. So what is advised counts
    only if scale 1 has more errors by over ``sqrt(repaired + broken)``, or too many elsewhere.
    """
    errors, scales = curve["errors"], curve["scales"]
    advised, whole = scales.index(curve["advised"]), scales.index(1)
    more = errors[whole] - errors[advised]
    is_worse = more > curve["repaired_or_broken"][whole] ** 0.5 or _harms_others(curve, whole)
    return float(curve["advised"]) if is_worse else 1.0


def _harms_others(curve: Mapping[str, Any], place: int) -> bool:
    """Whether errors elsewhere are too many at a scale, if there are enough to tell."""
    elsewhere = curve.get("errors_elsewhere")
    if elsewhere is None:
        return False
    of_base = elsewhere[curve["scales"].index(0)]
    return bool(of_base >= _ENOUGH_ERRORS and elsewhere[place] > _MAX_ELSEWHERE * of_base)
