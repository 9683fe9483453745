"""The preprocessing that a network was trained with: the usual conventions, tried on images."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_mnist.data import ImageTensors
from lora_mnist.progress import progress

#: Mean and deviation of ImageNet's pixels, as torchvision's models want them.
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Logits are scaled to one deviation: else the loss favours high contrast.
_LOGITS_STD = 3.0


class Trial(NamedTuple):
    """Outcome of a network on images that were prepared in one way."""

    convention: dict[str, Any]  # arguments of a data module; mean and std None: measured
    loss: float  # mean cross-entropy, with logits of one standard deviation
    wrong: Tensor  # which images are misclassified; bool, shape (N,)


def conventions(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The usual ways to prepare images; the first is that of ``settings``.

    Images are cropped, after scaling to their size or to 1 / 0.875 of it, or stretched; normalised
    with their own mean and deviation, with ImageNet's, with 0.5 and 0.5, or only divided by 255;
    red first or, as in OpenCV, blue. Only keys in ``settings`` vary; with a transform of one's own,
    none do.
    """
    defaults = {"resize": "crop", "crop_pct": 1.0}
    configured: dict[str, Any] = {}
    for key in ("resize", "crop_pct", "mean", "std", "color_order"):
        if key in settings:
            configured[key] = settings[key] or defaults.get(key, settings[key])
    if settings.get("transform"):
        return [configured]
    sizes = [(configured.get("resize"), configured.get("crop_pct"))]
    if settings.get("image_size"):
        sizes = [("crop", 1.0), ("crop", 0.875), ("stretch", 1.0)]
    pixels = [(settings["mean"], settings["std"]), (None, None), (0.5, 0.5), (0.0, 1.0)]
    orders = ["rgb"]
    if settings.get("channels") == 3:
        pixels.append(_IMAGENET)
        orders.append("bgr")
    ways = [configured]
    for (resize, crop_pct), (mean, std), order in product(sizes, pixels, orders):
        values = {"resize": resize, "crop_pct": crop_pct, "mean": mean, "std": std}
        values["color_order"] = order
        convention = {key: values[key] for key in configured}
        if convention not in ways:
            ways.append(convention)
    return ways


@torch.no_grad()
def try_conventions(
    net: nn.Module,
    data: Any,
    device: torch.device,
    ways: Sequence[dict[str, Any]],
    count: int,
) -> Iterator[Trial]:
    """Try ``net``, in eval mode, on the same images of ``data``, prepared in one way after another.

    ``count`` of them are validation images, and as many are training images, where a network's own
    preprocessing stands out most. None is a test image. The first way is that of ``data``.
    """
    configured = ways[0]
    parts = data.sets[:2]
    indices = []
    for part in parts:
        spread = torch.linspace(0, len(part) - 1, min(count, len(part)))  # classes stand in a row
        indices.append(spread.long().tolist())
    images: dict[str, Tensor] = {}
    for convention in progress(ways, "preprocessing", len(ways)):
        sizing = {key: convention[key] for key in ("resize", "crop_pct") if key in convention}
        if str(sizing) not in images:
            sets = parts if convention is configured else data.prepared(**sizing)
            batches = [part.take(some) for part, some in zip(sets, indices, strict=True) if some]
            images[str(sizing)] = torch.cat([batch for batch, _ in batches])
            labels = torch.cat([batch_labels for _, batch_labels in batches])
        prepared = copy.copy(data)
        if convention is not configured:
            prepared.color_order = convention.get("color_order", "rgb")
            prepared.mean, prepared.std = convention["mean"], convention["std"]
        tensors = ImageTensors(images[str(sizing)], labels)
        if prepared.mean is None or prepared.std is None:
            prepared.measure(tensors)
        split = torch.split(tensors.images, data.eval_batch_size)
        outputs = torch.cat([net(prepared.normalise(batch.to(device))).cpu() for batch in split])
        outputs *= _LOGITS_STD / outputs.std()
        wrong = outputs.argmax(dim=1) != labels
        yield Trial(convention, cross_entropy(outputs, labels).item(), wrong)
