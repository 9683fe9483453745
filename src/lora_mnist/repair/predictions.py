"""One table of predictions, before and after a repair, and every count that is made of it.

Before is the base; after is base and adapter. A network without an adapter has no after.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_mnist.errors import TrainingError
from lora_mnist.lora.model import usable_adapters
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.repair.significance import mcnemar, precision

#: With more classes only those to repair have a curve of their own.
_MAX_CURVES = 16
#: The counts that loggers get.
_LOGGED = (
    *("accuracy", "loss", "errors", "repaired", "broken"),
    *("errors_of_target", "errors_elsewhere", "false_calls_of_target"),
)


@dataclass(frozen=True)
class Predictions:
    """A row an image; each column is a tensor of shape (N,), on the CPU."""

    num_classes: int
    label: Tensor  # the right class
    before: Tensor  # the class that is predicted
    before_probability: Tensor  # which this class is given
    before_loss: Tensor  # the cross-entropy, in nats
    after: Tensor | None = None
    after_probability: Tensor | None = None
    after_loss: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def at(self, rows: Tensor) -> "Predictions":
        """Some rows of the table, as a table."""
        columns: dict[str, Any] = {}
        for name, column in vars(self).items():
            if isinstance(column, Tensor):
                columns[name] = column[rows]
        return replace(self, **columns)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns to write and to show, by name, each of shape (N,)."""
        columns: dict[str, NDArray[Any]] = {}
        for name, column in vars(self).items():
            if not isinstance(column, Tensor) or name.endswith("loss"):
                continue
            columns[name] = column.numpy()
            if name.endswith("probability"):
                columns[name] = columns[name].astype(float).round(6)
        was_right = columns["before"] == columns["label"]
        is_right = columns.get("after", columns["before"]) == columns["label"]
        cases = [was_right & is_right, is_right, was_right]
        columns["outcome"] = np.select(cases, ["right", "repaired", "broken"], "wrong")
        return columns

    def __post_init__(self) -> None:
        for probability in (self.before_probability, self.after_probability):
            if probability is not None and probability.isnan().any():
                raise TrainingError(
                    "the network's outputs are not finite (NaN or infinity); expected logits, or "
                    "in training a smaller optimizer.lr"
                )

    def with_after(self, prediction: Tensor, probability: Tensor, loss: Tensor) -> "Predictions":
        """The table with the columns of base and adapter."""
        return replace(self, after=prediction, after_probability=probability, after_loss=loss)


class Columns(NamedTuple):
    """What a network makes of N images, perhaps at each of S scales of its adapter."""

    num_classes: int
    label: Tensor  # (N,)
    prediction: Tensor  # (N,) or (S, N), as are the two that follow
    probability: Tensor
    loss: Tensor

    def at(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, probability and loss at one of the scales, each of shape (N,)."""
        return self.prediction[place], self.probability[place], self.loss[place]


def columns_of(logits: Tensor, labels: Tensor) -> Columns:
    """The columns of a batch, where it is, from logits of shape (N, C) or (S, N, C)."""
    logits = logits.float()  # half precision would round the probabilities
    prediction = logits.argmax(dim=-1)
    probability = logits.softmax(dim=-1).gather(-1, prediction[..., None])[..., 0]
    each_label = labels.expand_as(prediction).flatten()
    loss = F.cross_entropy(logits.flatten(0, -2), each_label, reduction="none")
    return Columns(logits.shape[-1], labels, prediction, probability, loss.view_as(prediction))


def joined(batches: Sequence[Columns]) -> Columns:
    """The columns of all batches, on the CPU."""
    if not batches:
        raise ValueError("batches: expected at least one batch of images and labels")
    _, *columns = zip(*batches, strict=True)
    whole = [torch.cat(column, dim=-1).cpu() for column in columns]
    return Columns(batches[0].num_classes, *whole)


@torch.no_grad()
def logits_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], scales: Sequence[float | None]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The labels of each batch, and the logits at each scale: 0 the base, ``None`` as it is."""
    adapters = [(adapter, adapter.scale) for adapter in lora_adapters(net)]
    for images, labels in batches:
        at_scales = []
        try:
            for scale in scales:
                for adapter, own in adapters:
                    adapter.scale = own if scale is None else scale
                at_scales.append(net(images))
        finally:
            for adapter, own in adapters:
                adapter.scale = own
        yield labels, at_scales


def columns_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], scales: Sequence[float | None]
) -> Columns:
    """What :func:`logits_at` gives for all batches, without the logits."""
    columns = []
    for labels, at_scales in logits_at(net, batches, scales):
        columns.append(columns_of(torch.stack(at_scales), labels))
    return joined(columns)


def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    base: Predictions | None = None,
) -> Predictions:
    """The table of ``net``; the predictions of its ``base`` may be known."""
    has_adapter = bool(lora_adapters(net))
    scales: list[float | None] = [0.0] if base is None else []
    if has_adapter:
        scales.append(None)
    columns = columns_at(net, batches, scales)
    if base is None:
        base = Predictions(columns.num_classes, columns.label, *columns.at(0))
    return base.with_after(*columns.at(-1)) if has_adapter else base


def counts_of(predictions: Predictions, targets: Sequence[int] = ()) -> dict[str, dict[str, Any]]:
    """Every count of a table, as results.json has it: see :func:`compare_errors`.

    With ``targets`` both sides have the errors of these classes together, the errors elsewhere, and
    the images of other classes that are given the name of any of them; after a repair, p-values.
    """
    label, num_classes = predictions.label, predictions.num_classes
    was_right = predictions.before == label
    before = _count(predictions.before, predictions.before_loss, label, num_classes, targets)
    if predictions.after is None or predictions.after_loss is None:
        return {"before": before}
    is_right = predictions.after == label
    repaired = _per_class(label[is_right & ~was_right], num_classes)
    broken = _per_class(label[was_right & ~is_right], num_classes)
    after: dict[str, Any] = {
        "repaired": sum(repaired),
        "broken": sum(broken),
        "negative_flip_rate": sum(broken) / len(label),
        "p_value": mcnemar(sum(repaired), sum(broken)),
        "repaired_per_class": repaired,
        "broken_per_class": broken,
    }
    if targets:
        repaired_targets = sum(repaired[c] for c in targets)
        broken_targets = sum(broken[c] for c in targets)
        after["p_value_of_target"] = mcnemar(repaired_targets, broken_targets)
        after["p_value_elsewhere"] = mcnemar(
            sum(repaired) - repaired_targets, sum(broken) - broken_targets
        )
    after |= _count(predictions.after, predictions.after_loss, label, num_classes, targets)
    return {"before": before, "after": after}


def _count(
    prediction: Tensor, loss: Tensor, label: Tensor, num_classes: int, targets: Sequence[int]
) -> dict[str, Any]:
    """The counts of one side of a table."""
    is_wrong = prediction != label
    errors = error_counts(prediction, label, targets)
    mean_loss = loss.double().mean().item()
    return {
        "loss": mean_loss if math.isfinite(mean_loss) else None,
        "accuracy": (len(label) - errors["errors"]) / len(label),
        "errors_per_class": _per_class(label[is_wrong], num_classes),
        "false_calls_per_class": _per_class(prediction[is_wrong], num_classes),
        "images_per_class": _per_class(label, num_classes),
        **errors,
    }


def error_counts(prediction: Tensor, label: Tensor, targets: Sequence[int]) -> dict[str, Any]:
    """How many predictions, (N,) or (S, N), are wrong; with ``targets``, on which of the images."""
    is_wrong = prediction != label
    counts = {"errors": is_wrong.sum(dim=-1).tolist()}
    if targets:
        group = torch.tensor(list(targets))
        is_target = torch.isin(label, group)
        is_false_call = torch.isin(prediction, group) & ~is_target
        counts["errors_of_target"] = (is_wrong & is_target).sum(dim=-1).tolist()
        counts["errors_elsewhere"] = (is_wrong & ~is_target).sum(dim=-1).tolist()
        counts["false_calls_of_target"] = is_false_call.sum(dim=-1).tolist()
    return counts


def _per_class(labels: Tensor, num_classes: int) -> list[int]:
    """How many of ``labels`` are of each class."""
    counts: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
    return counts


def compare_errors(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, Any]]:
    """Errors of an adapted network beside those of its base, for a loop of one's own.

    The network stays in its mode and on its device; call ``model.eval()`` first.

    Args:
        model: a network with LoRA (see :func:`lora_mnist.add_lora`): from images to logits of
            shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,), such as a ``DataLoader``.

    Returns:
        ``before``, of the base, and ``after``. Both have ``loss``, the mean cross-entropy in nats,
        ``None`` where it is not finite; ``accuracy``; ``errors``; ``errors_per_class``;
        ``false_calls_per_class``, images of other classes that are given this one's name; and
        ``images_per_class``.

        ``after`` also has ``repaired``, images that the base gets wrong and the adapted network
        right; ``broken``, the reverse; both per class; ``p_value`` of the two, by McNemar's exact
        test; and ``negative_flip_rate``, ``broken`` as a share of all images (Yan et al. 2021,
        "Positive-Congruent Training", arXiv:2011.09161).

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or there is no batch.
    """
    usable_adapters(model)
    return counts_of(evaluate(model, batches))


def outcomes_by_split(
    tables: Mapping[str, Predictions], targets: Sequence[int] = ()
) -> dict[str, dict[str, Any]]:
    """The counts of several sets as results.json names them: ``test_base`` is before a repair."""
    outcomes = {}
    for split, predictions in tables.items():
        counts = counts_of(predictions, targets)
        if "after" in counts:
            outcomes[split] = counts["after"]
            outcomes[f"{split}_base"] = counts["before"]
        else:
            outcomes[split] = counts["before"]
    return outcomes


def logged_metrics(
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = (),
    targets: Sequence[int] = (),
) -> dict[str, float]:
    """The numbers of ``outcomes`` by a logger's tag; with ``names`` each class has its accuracy."""
    classes: Sequence[int] = range(len(names))
    if len(names) > _MAX_CURVES:
        classes = targets[:_MAX_CURVES]
    tags: dict[str, float] = {}
    for split, outcome in outcomes.items():
        numbers = {key: outcome.get(key) for key in _LOGGED}
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        if targets:
            numbers["precision_of_target"] = precision(outcome, targets)
        if split in ("val", "test", "test_base"):
            for c in classes:
                name = names[c].replace("/", "-")  # else it would begin a level of tags
                if images[c]:
                    numbers[f"accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
        for key, number in numbers.items():
            if number is not None:
                tags[f"{split}/{key}"] = float(number)
    return tags


def val_metrics(
    columns: Columns,
    before: Predictions | None = None,
    classes: Sequence[str] = (),
    targets: Sequence[int] = (),
) -> dict[str, float]:
    """What loggers get of a validation; ``before`` has the predictions of the base, if known."""
    table = Predictions(*columns)
    if before is not None:
        table = before.with_after(*columns[2:])
    return logged_metrics(outcomes_by_split({"val": table}, targets), classes, targets)
