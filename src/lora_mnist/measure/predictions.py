"""Computes predictions before and after a repair, by the only loop with a forward pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_mnist.errors import OutputsError
from lora_mnist.lora.model import lora_at
from lora_mnist.lora.point import BASE, Point
from lora_mnist.lora.weight import adapters_on

#: A CPU computes this many input values at once, three images of 3 x 224 x 224, so that a layer's
#: output is smaller than the largest block that glibc keeps. glibc returns larger blocks to the
#: kernel, and free memory beyond twice the largest block it has freed; the kernel then clears the
#: pages again for the next layer, which is up to half of the work.
_VALUES_AT_ONCE, _LARGEST_KEPT = 3 * 3 * 224 * 224, 31 * 2**20


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images at S points: of one network, or before and after a repair."""

    num_classes: int
    label: Tensor  # the right class, (N,)
    prediction: Tensor  # the predicted class, (S, N), like the next two fields
    probability: Tensor  # of the predicted class
    loss: Tensor  # the cross-entropy, in nats

    def __post_init__(self) -> None:
        refuse_nan(self.probability)

    def __len__(self) -> int:
        return len(self.label)

    def followed_by(self, others: "Predictions") -> "Predictions":
        """Return these points followed by the points of ``others``, for the same images."""
        columns: dict[str, Any] = {}
        for name in ("prediction", "probability", "loss"):
            columns[name] = torch.cat([getattr(self, name), getattr(others, name)])
        return replace(self, **columns)

    def outcomes(self) -> NDArray[np.str_]:
        """Return each image's outcome, (N,): ``right``, ``repaired``, ``broken`` or ``wrong``."""
        is_right = (self.prediction == self.label).numpy()
        before, after = is_right[0], is_right[-1]
        cases = [before & after, after, before]
        return np.select(cases, ["right", "repaired", "broken"], "wrong")


def refuse_nan(numbers: Tensor) -> None:
    """Raise :class:`.errors.OutputsError` if numbers computed from logits are NaN."""
    if numbers.isnan().any():
        raise OutputsError(
            "the network's outputs are not finite (NaN or infinity); expected logits, or in "
            "training a smaller optimizer.lr"
        )


def compute_logits(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits of a batch, (N, num_classes), computed a few images at a time on a CPU."""
    if images.device.type != "cpu":
        return net(images)
    few = max(1, _VALUES_AT_ONCE // images[0].numel())
    with parametrize.cached():  # an adapted weight is built once
        return torch.cat([net(some) for some in torch.split(images, few)])


@torch.no_grad()
def logits_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point | None]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield each batch's labels, and its logits at each point; ``None`` is the current point."""
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)  # freed at once: raises glibc's limit
    for images, labels in batches:
        at_points = []
        for point in points:
            with lora_at(net, point):
                at_points.append(compute_logits(net, images))
        yield labels, at_points


def compute_predictions_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point | None]
) -> Predictions:
    """Return the predictions for all batches at these points, as :func:`logits_at`."""
    columns = []
    for labels, at_points in logits_at(net, batches, points):
        logits = torch.stack(at_points).float()  # half precision would round the probabilities
        prediction = logits.argmax(dim=-1)
        probability = logits.softmax(dim=-1).gather(-1, prediction[..., None])[..., 0]
        each_label = labels.expand_as(prediction).flatten()
        loss = F.cross_entropy(logits.flatten(0, -2), each_label, reduction="none")
        columns.append((labels, prediction, probability, loss.view_as(prediction)))
    if not columns:
        raise ValueError("batches: expected at least one batch of images and labels")
    whole = [torch.cat(column, dim=-1).cpu() for column in zip(*columns, strict=True)]
    return Predictions(logits.shape[-1], *whole)


def compute_predictions(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], base: Predictions | None = None
) -> Predictions:
    """Return the predictions of ``net``, after the base's if they are given."""
    points: list[Point | None] = [BASE] if base is None else []
    if adapters_on(net):
        points.append(None)
    table = compute_predictions_at(net, batches, points)
    return table if base is None else base.followed_by(table)
