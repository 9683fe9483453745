"""The dial of a finished adapter: errors at several scales, and which scale to take.

With the scale ``s`` the network has the weights ``W + s * scaling * lora_B @ lora_A``: a straight
line from the base, ``s = 0``, to the adapter as trained, ``s = 1``. Somewhere on it a repair often
keeps most of what it mends and loses most of what it breaks: Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models" (WiSE-FT), arXiv:2109.01903; Ilharco et al. 2022, "Patching
open-vocabulary models by interpolating weights" (PAINT), arXiv:2208.05592.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.lora import named_adapters

#: An adapter that breaks much has its best place near 0; further up the curve is flat.
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2)


@torch.no_grad()
def dial_curve(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    targets: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    name: str | None = None,
) -> dict[str, Any]:
    """Errors of an adapted network at several scales of its adapter, and the scale to take.

    Choose a scale by validation images, never by test images. The network is asked in the mode and
    on the device that it is in; call ``model.eval()`` first.

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
        ValueError: if no layer of ``model`` carries LoRA, no adapter has that name, or there is no
            batch.
    """
    before = [(adapter, adapter.scale) for adapter in named_adapters(model, name)]
    images, errors, errors_of_target = 0, [0] * len(scales), [0] * len(scales)
    for inputs, labels in batches:
        images += len(labels)
        is_target = torch.isin(labels, torch.tensor(list(targets or []), device=labels.device))
        for place, scale in enumerate(scales):
            for adapter, own in before:
                adapter.scale = scale * own
            wrong = model(inputs).argmax(dim=1) != labels
            errors[place] += int(wrong.sum())
            errors_of_target[place] += int((wrong & is_target).sum())
    for adapter, own in before:
        adapter.scale = own
    if not images:
        raise ValueError("batches: expected at least one batch of images and labels")
    curve: dict[str, Any] = {"images": images, "scales": list(scales), "errors": errors}
    if targets:
        curve["errors_of_target"] = errors_of_target
        pairs = zip(errors, errors_of_target, strict=True)
        curve["errors_elsewhere"] = [every - of_target for every, of_target in pairs]
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
