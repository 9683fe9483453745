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

from lora_mnist.classifier.metrics import evaluation_of
from lora_mnist.lora import named_adapters

#: An adapter that breaks much has its best place near 0; further up the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2)
#: :func:`quick_dial` tries these first, and then two more.
_COARSE = (0.3, 0.6)
#: So many scales in all, beside 0 and 1.
TRIES = 4


def dial_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    name: str | None = None,
) -> dict[str, Any]:
    """Errors of an adapted network at several scales of its adapter, and the scale to take.

    Choose a scale by validation images, never by test images. The network is evaluated in the mode
    and on the device that it is in; call ``model.eval()`` first.

    Args:
        model: a network with LoRA: from images to logits of shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,).
        targets: the classes to repair; ``None`` where all count alike.
        scales: what to try, 0 among it, as factors of the scale that an adapter has now.
        name: the adapter to turn; ``None``: all of them together. Others stay as they are.

    Returns:
        ``images``, their number; ``scales``; for each of these the ``errors`` and, with
        ``targets``, the ``errors_of_target`` and ``errors_elsewhere``; and what
        :func:`advised_scale` says, ``advised``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, there is no
            batch, or 0 is not among ``scales``.
    """
    predictions, labels = predictions_at(model, batches, scales, name)
    wrong = predictions != labels
    is_target = _is_target(labels, targets)
    of_target, elsewhere = (wrong & is_target).sum(dim=1), (wrong & ~is_target).sum(dim=1)
    counts = zip(of_target.tolist(), elsewhere.tolist(), strict=True)
    return _curve(len(labels), dict(zip(scales, counts, strict=True)), targets)


@torch.no_grad()
def quick_dial(
    model: nn.Module,
    batches: Callable[[Tensor | None], Iterable[tuple[Tensor, Tensor]]],
    targets: Sequence[int] | None = None,
    most: int = 1000,
    predictions: Mapping[str, Tensor] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Nearly what :func:`dial_curve` finds, with far fewer forward passes.

    The scales 0 and 1 are counted on all images. Two scales between are tried, then one beside the
    best and one above what they advise, on ``most`` images (:func:`_informative`); the others are
    taken to be right or wrong there as they are at 1. docs/speed.md compares both curves.

    Args:
        model: as in :func:`dial_curve`.
        batches: gives the images at these indices, int64, and their labels; with ``None``, all.
        targets: as in :func:`dial_curve`.
        most: images that the network sees at each scale between, >= 1.
        predictions: those of base and adapter for all images, as a validation leaves them (see
            :class:`.metrics.Evaluation`); ``None``: they are computed, in two passes.
        name: as in :func:`dial_curve`.

    Returns:
        As :func:`dial_curve`; and ``forward_passes``, how many images the network has seen.
    """
    passes = 0
    if predictions is None:
        evaluation = evaluation_of(model, batches(None), has_base=True, adapter=name)
        evaluation.compute()
        predictions = evaluation.predictions
        passes = 2 * len(predictions["label"])
    known = {key: tensor.cpu() for key, tensor in predictions.items()}
    label = known["label"]
    wrong = {0.0: known["base"] != label, 1.0: known["adapted"] != label}
    chosen, weights, stays = _informative(known, most)
    groups = [_is_target(label, targets)]
    groups.append(~groups[0])
    points = {}
    for scale, at_scale in wrong.items():
        points[scale] = tuple(int((at_scale & group).sum()) for group in groups)

    def try_scales(scales: Sequence[float]) -> None:
        at_scales, _ = predictions_at(model, batches(chosen), scales, name)
        for scale, predicted in zip(scales, at_scales.cpu(), strict=True):
            is_wrong = predicted != label[chosen]
            counts = []
            for group in groups:
                errors = (wrong[1.0] & stays & group).sum()
                errors = errors + weights[is_wrong & group[chosen]].sum()
                counts.append(round(float(errors)))
            points[scale] = tuple(counts)

    try_scales(_COARSE)
    errors = {scale: sum(point) for scale, point in points.items()}
    best = min(errors, key=lambda scale: (errors[scale], -scale))
    advised = advised_scale(list(errors), list(errors.values()))
    # What is advised may lie above the best: the next scale on the way to 1 decides that.
    near = [scale for scale in SCALES if scale > advised][:1]
    near += [scale for scale in SCALES if scale > best][:1]
    near += [scale for scale in SCALES if scale < best][-1:]
    untried = [scale for scale in dict.fromkeys([*near, *SCALES]) if scale not in points]
    try_scales(untried[:2])
    passes += len(chosen) * TRIES
    curve = _curve(len(label), dict(sorted(points.items())), targets)
    return {**curve, "forward_passes": passes}


def _informative(known: Mapping[str, Tensor], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images that are likely to be right at some scales and wrong at others.

    The repaired ones come first, with up to half of the places, then the broken ones. Where there
    are more of them, an even part stands for all, in the order of the base's certainty, by which an
    image turns early or late. The places that are left get the least certain of the others.

    Returns:
        The indices of ``most`` images at most, for how many images each of them stands, and, bool,
        shape (N,), the images for which none of them stands.
    """
    label, certainty = known["label"], known["base_probability"]
    base_wrong, adapted_wrong = known["base"] != label, known["adapted"] != label
    chosen, weights, places = [], [], most
    for group, share in (
        (base_wrong & ~adapted_wrong, most // 2),
        (~base_wrong & adapted_wrong, most),
    ):
        members = group.nonzero()[:, 0]
        members = members[certainty[members].argsort(stable=True)]
        count = min(len(members), share, places)
        if count:
            chosen.append(members[torch.linspace(0, len(members) - 1, count).long()])
            weights.append(torch.full((count,), len(members) / count))
            places -= count
    stays = base_wrong == adapted_wrong
    others = stays.nonzero()[:, 0]
    least = torch.minimum(certainty, known["adapted_probability"])[others].argsort(stable=True)
    others = others[least[:places]]
    stays[others] = False
    chosen.append(others)
    weights.append(torch.ones(len(others)))
    return torch.cat(chosen), torch.cat(weights), stays


@torch.no_grad()
def predictions_at(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    scales: Sequence[float],
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The class that a network predicts at each of ``scales``, int64, (scales, N); the labels.

    The arguments are those of :func:`dial_curve`.
    """
    before = [(adapter, adapter.scale) for adapter in named_adapters(model, name)]
    predictions, labels = [], []
    for images, batch_labels in batches:
        at_scales = []
        for scale in scales:
            for adapter, own in before:
                adapter.scale = scale * own
            at_scales.append(model(images).argmax(dim=1))
        predictions.append(torch.stack(at_scales))
        labels.append(batch_labels)
    for adapter, own in before:
        adapter.scale = own
    if not labels:
        raise ValueError("batches: expected at least one batch of images and labels")
    return torch.cat(predictions, dim=1), torch.cat(labels)


def _is_target(labels: Tensor, targets: Sequence[int] | None) -> Tensor:
    return torch.isin(labels, torch.tensor(list(targets or []), device=labels.device))


def _curve(
    images: int, points: Mapping[float, Sequence[int]], targets: Sequence[int] | None
) -> dict[str, Any]:
    """The curve as results.json has it; a point has the errors of the target and elsewhere."""
    scales, errors = list(points), [sum(point) for point in points.values()]
    curve: dict[str, Any] = {"images": images, "scales": scales, "errors": errors}
    if targets:
        curve["errors_of_target"] = [of_target for of_target, _ in points.values()]
        curve["errors_elsewhere"] = [elsewhere for _, elsewhere in points.values()]
    curve["advised"] = advised_scale(scales, errors)
    return curve


def advised_scale(scales: Sequence[float], errors: Sequence[int]) -> float:
    """The scale nearest to 1 that saves three quarters, or more, of what the best scale saves.

    Of two that are equally near it is the smaller. It has no more errors than the base, whose scale
    is 0, and no class counts for more than another; docs/repair.md compares it with other rules.
    """
    if 0 not in scales:
        raise ValueError(f"scales={list(scales)}: expected 0 among them, the base")
    base = errors[scales.index(0)]
    enough = 0.75 * (base - min(errors))
    good = [scale for scale, count in zip(scales, errors, strict=True) if base - count >= enough]
    return float(min(sorted(good), key=lambda scale: abs(scale - 1)))
