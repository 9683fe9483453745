"""The dial of a finished adapter: errors at several scales, and which scale to take.

With the scale ``s`` the network has the weights ``W + s * scaling * lora_B @ lora_A``: a straight
line from the base, ``s = 0``, to the adapter as trained, ``s = 1``. Somewhere on it a repair often
keeps most of what it mends and loses most of what it breaks: Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models" (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022, "Patching
open-vocabulary models by interpolating weights" (PAINT), arXiv:2208.05592.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.lora.model import usable_adapters
from lora_mnist.repair.predictions import Predictions

#: More scales near 0, where an adapter that breaks much is best; towards 1 the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
#: Number of scales between 0 and 1.
TRIES = len(SCALES) - 2
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
        scales: scales to try, 0 among them; each multiplies the scale that the adapter has now.

    Returns:
        ``images``, their number; ``scales``; for each of these the ``errors``, the images
        ``repaired_or_broken`` and, with ``targets``, the ``errors_of_target``, ``errors_elsewhere``
        and ``false_calls_of_target``; and what :func:`advised_scale` says, ``advised``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, there is no batch, or 0 is not among
            ``scales``.
    """
    predictions, labels = predictions_at(model, batches, scales)
    return _curve(scales, _faults(predictions, labels, targets), labels, targets)


@torch.no_grad()
def approximate_dial(
    model: nn.Module,
    batches: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]],
    predictions: Predictions,
    targets: Sequence[int] | None = None,
    max_images: int = 1000,
) -> dict[str, Any]:
    """Nearly what :func:`dial_curve` finds, with far fewer forward passes.

    The scales between 0 and 1 are tried on images whose prediction the adapter changes. If there
    are more than ``max_images`` of these, a sample is evaluated; each image stands for similar
    ones. Every other image is taken to have the same prediction at every scale. The errors at both
    ends, and at the advised scale, are those of all images.

    ``predictions`` are those of the adapter as it is; ``batches`` gives the images at some of their
    indices, int64, and the labels. The curve also has ``forward_passes``, how many images the
    network has seen.
    """
    label, before, after = predictions.label, predictions.before, predictions.after
    assert after is not None
    faults = _faults(before, label, targets).repeat(len(SCALES), 1)
    faults[-1] = _faults(after, label, targets)
    changed = (before != after).nonzero()[:, 0]
    # By label, then by whether the base is wrong: neighbours are alike, and one of each group of
    # them stands for the others.
    changed = changed[(2 * label + (before != label))[changed].argsort(stable=True)]
    count = min(max_images, len(changed))
    if count:
        groups = torch.arange(len(changed)) * count // len(changed)
        chosen = changed[torch.searchsorted(groups, torch.arange(count))]
        some = batches(predictions.index[chosen])
        between, _ = predictions_at(model, some, SCALES[1:-1])
        faults[1:-1, changed] = _faults(between.cpu(), label[chosen], targets)[:, groups]
    passes = TRIES * count
    exact = {0.0, 1.0}
    while True:
        curve = _curve(SCALES, faults, label, targets)
        scale = curve["advised"]
        if scale in exact:
            return {**curve, "forward_passes": passes}
        there, _ = predictions_at(model, batches(predictions.index), [scale])
        faults[SCALES.index(scale)] = _faults(there[0].cpu(), label, targets)
        passes += len(label)
        exact.add(scale)


@torch.no_grad()
def predictions_at(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The class that a network predicts at each of ``scales``, int64, (scales, N); the labels."""
    before = [(adapter, adapter.scale) for adapter in usable_adapters(model)]
    predictions, labels = [], []
    try:
        for images, batch_labels in batches:
            at_scales = []
            for scale in scales:
                for adapter, own in before:
                    adapter.scale = scale * own
                at_scales.append(model(images).argmax(dim=1))
            predictions.append(torch.stack(at_scales))
            labels.append(batch_labels)
    finally:
        for adapter, own in before:
            adapter.scale = own
    if not labels:
        raise ValueError("batches: expected at least one batch of images and labels")
    return torch.cat(predictions, dim=1), torch.cat(labels)


def _faults(predictions: Tensor, labels: Tensor, targets: Sequence[int] | None) -> Tensor:
    """For each prediction 0 if it is right, 1 if wrong, and 2 if it is a false call of a target.

    A false call gives the name of a target to an image of another class.
    """
    is_wrong = predictions != labels
    group = torch.tensor(list(targets or ()), dtype=labels.dtype, device=labels.device)
    is_false_call = torch.isin(predictions, group) & ~torch.isin(labels, group)
    return is_wrong.to(torch.int8) + is_false_call.to(torch.int8)


def _curve(
    scales: Sequence[float], faults: Tensor, labels: Tensor, targets: Sequence[int] | None
) -> dict[str, Any]:
    """The curve as results.json has it; ``faults`` are those of :func:`_faults`, (scales, N)."""
    if 0 not in scales:
        raise ValueError(f"scales={list(scales)}: expected 0 among them, the base")
    wrong = faults > 0
    curve: dict[str, Any] = {
        "images": len(labels),
        "scales": list(scales),
        "errors": wrong.sum(dim=1).tolist(),
        "repaired_or_broken": (wrong != wrong[list(scales).index(0)]).sum(dim=1).tolist(),
    }
    if targets:
        is_target = torch.isin(labels, torch.tensor(list(targets), device=labels.device))
        curve["errors_of_target"] = (wrong & is_target).sum(dim=1).tolist()
        curve["errors_elsewhere"] = (wrong & ~is_target).sum(dim=1).tolist()
        curve["false_calls_of_target"] = (faults == 2).sum(dim=1).tolist()
    return {**curve, "advised": advised_scale(curve)}


def advised_scale(curve: Mapping[str, Any]) -> float:
    """The scale to take: among those that save enough errors, the one nearest to 1.

    A scale saves enough if ``saved >= 0.5 * most - 0.5 * sqrt(repaired + broken)``. ``most`` is
    what the best scale saves. The root is the standard deviation of ``saved = repaired - broken``
    where both are equally likely, so a few validation errors by chance turn no repair off.

    A scale that saves no error on the classes to repair is left out. Where the base has 100 errors
    or more on the other classes, nor does one that leaves more than 110% of these. Of two that are
    equally near, the smaller is taken. docs/experiments.md compares this with other rules.

    Args:
        curve: what :func:`dial_curve` returns, without ``advised``.
    """
    scales, errors = curve["scales"], curve["errors"]
    of_target, elsewhere = curve.get("errors_of_target"), curve.get("errors_elsewhere")
    base = scales.index(0)
    places = sorted(range(len(scales)), key=lambda i: scales[i])
    if elsewhere is not None and elsewhere[base] >= _ENOUGH_ERRORS:
        places = [i for i in places if elsewhere[i] <= _MAX_ELSEWHERE * elsewhere[base]]
    most = errors[base] - min(errors[i] for i in places)
    advised = base
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

    It has learnt more than the adapter that ``curve`` has measured, and leaves fewer errors. So
    :func:`advised_scale` is too careful for it where validation errors are few. What that says
    counts only if chance does not explain it: if scale 1 has more errors by over
    ``2 * sqrt(repaired + broken)``, or on the other classes more than are allowed there.
    docs/experiments.md has the numbers.

    Args:
        curve: what :func:`dial_curve` or :func:`approximate_dial` returns; 1 is among its scales.
    """
    scales, errors, elsewhere = curve["scales"], curve["errors"], curve.get("errors_elsewhere")
    base, advised, whole = (scales.index(scale) for scale in (0, curve["advised"], 1))
    is_worse = errors[whole] - errors[advised] > 2 * curve["repaired_or_broken"][whole] ** 0.5
    if elsewhere is not None and elsewhere[base] >= _ENOUGH_ERRORS:
        is_worse = is_worse or elsewhere[whole] > _MAX_ELSEWHERE * elsewhere[base]
    return float(curve["advised"]) if is_worse else 1.0
