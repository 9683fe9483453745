"""One table of predictions, before and after a repair, and every count that is made of it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_mnist.errors import OutputsError
from lora_mnist.lora.model import lora_at, usable_adapters
from lora_mnist.lora.point import BASE, Point
from lora_mnist.lora.weight import adapters_on
from lora_mnist.measure.significance import mcnemar, p_value_of_measure
from lora_mnist.measure.weights import MEASURES, class_weights, measure

#: What is counted at each scale of the dial; without targets the first alone.
OF_DIAL = ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target")
#: The counts that loggers get.
LOGGED = (*MEASURES, "loss", "repaired", "broken", *OF_DIAL, "precision_of_target")
#: With more classes only those to repair have a curve of their own.
_MAX_CURVES = 16


@dataclass(frozen=True)
class Predictions:
    """What a network predicts for N images at S points: as it is, or before and after a repair."""

    num_classes: int
    label: Tensor  # the right class, (N,)
    prediction: Tensor  # the class that is predicted, (S, N), as are the two that follow
    probability: Tensor  # which this class is given
    loss: Tensor  # the cross-entropy, in nats

    def __post_init__(self) -> None:
        refuse_nan(self.probability)

    def __len__(self) -> int:
        return len(self.label)

    def followed_by(self, others: "Predictions") -> "Predictions":
        """These points, and after them those of ``others``, for the same images."""
        columns: dict[str, Any] = {}
        for name in ("prediction", "probability", "loss"):
            columns[name] = torch.cat([getattr(self, name), getattr(others, name)])
        return replace(self, **columns)

    def outcomes(self) -> NDArray[np.str_]:
        """What became of each image, (N,): ``right``, ``repaired``, ``broken`` or ``wrong``."""
        is_right = (self.prediction == self.label).numpy()
        before, after = is_right[0], is_right[-1]
        cases = [before & after, after, before]
        return np.select(cases, ["right", "repaired", "broken"], "wrong")


def refuse_nan(numbers: Tensor) -> None:
    """Raise :class:`.errors.OutputsError` where numbers that logits give are NaN."""
    if numbers.isnan().any():
        raise OutputsError(
            "the network's outputs are not finite (NaN or infinity); expected logits, or in "
            "training a smaller optimizer.lr"
        )


@torch.no_grad()
def logits_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point | None]
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The labels of each batch, and the logits at each point of the dial; ``None``: as it is."""
    for images, labels in batches:
        at_points = []
        for point in points:
            with lora_at(net, point):
                at_points.append(net(images))
        yield labels, at_points


def predictions_at(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point | None]
) -> Predictions:
    """What :func:`logits_at` gives for all batches, without the logits."""
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


def predictions_of(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], base: Predictions | None = None
) -> Predictions:
    """The table of ``net``; the predictions of its ``base`` may be known."""
    points: list[Point | None] = [BASE] if base is None else []
    if adapters_on(net):
        points.append(None)
    table = predictions_at(net, batches, points)
    return table if base is None else base.followed_by(table)


def confusion_of(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """The images of each class by their prediction, int64, (num_classes, num_classes)."""
    counts = torch.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def counts_of_labels(
    label: Tensor,
    prediction: Tensor,
    num_classes: int,
    targets: Sequence[int] = (),
    mix: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Every count of predictions, (N,), with classes as common as in ``mix``, or as they are."""
    if not len(label):
        raise ValueError("expected at least one image")
    wrong = prediction != label
    errors, images = (each.bincount(minlength=num_classes) for each in (label[wrong], label))
    false_calls = prediction[wrong].bincount(minlength=num_classes)
    # A matrix of the classes would take gigabytes for ten thousand of them.
    pairs, numbers = torch.unique((label * num_classes + prediction)[wrong], return_counts=True)
    called_per_class: list[list[int] | None] = [None] * num_classes
    for pair, count in zip(pairs.tolist(), numbers.tolist(), strict=True):
        c, called = divmod(pair, num_classes)
        most = called_per_class[c]
        if most is None or count > most[1]:
            called_per_class[c] = [called, count]
    counts: dict[str, Any] = {}
    for name in MEASURES:
        counts[name] = measure(errors, images, class_weights(images if mix is None else mix, name))
    counts |= {
        "errors": int(errors.sum()),
        "errors_per_class": errors.tolist(),
        "called_per_class": called_per_class,
        "false_calls_per_class": false_calls.tolist(),
        "images_per_class": images.tolist(),
    }
    if targets:
        group = list(targets)
        counts["errors_of_target"] = int(errors[group].sum())
        counts["errors_elsewhere"] = counts["errors"] - counts["errors_of_target"]
        counts["false_calls_of_target"] = int(false_calls[group].sum())
        counts["precision_of_target"] = precision(counts, group)
    return counts


def precision(counts: Mapping[str, Any], targets: Sequence[int]) -> float | None:
    """Of the images that get the name of one of some classes, the share that are of it."""
    right = sum(counts["images_per_class"][c] - counts["errors_per_class"][c] for c in targets)
    called = right + sum(counts["false_calls_per_class"][c] for c in targets)
    return right / called if called else None


def changes_of(
    label: Tensor, before: Tensor, after: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The numbers of repaired and of broken images of each class, (num_classes,)."""
    was_right, is_right = before == label, after == label
    repaired = label[is_right & ~was_right].bincount(minlength=num_classes)
    broken = label[was_right & ~is_right].bincount(minlength=num_classes)
    return repaired, broken


def counts_of(
    predictions: Predictions, targets: Sequence[int] = (), mix: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Every count of a table, as results.json has it: :func:`counts_of_labels` of each side."""
    label, num_classes = predictions.label, predictions.num_classes
    sides = []
    for prediction, loss in zip(predictions.prediction, predictions.loss, strict=True):
        mean_loss = loss.double().mean().item()
        counts = {"loss": mean_loss if math.isfinite(mean_loss) else None}
        sides.append(counts | counts_of_labels(label, prediction, num_classes, targets, mix))
    if len(sides) == 1:
        return {"before": sides[0]}
    before, prediction = predictions.prediction
    repaired, broken = changes_of(label, before, prediction, num_classes)
    groups = {"p_value": list(range(num_classes))}
    if targets:
        groups["p_value_of_target"] = list(targets)
        groups["p_value_elsewhere"] = [c for c in range(num_classes) if c not in targets]
    after: dict[str, Any] = {
        "repaired": int(repaired.sum()),
        "broken": int(broken.sum()),
        "negative_flip_rate": int(broken.sum()) / len(label),
        "repaired_per_class": repaired.tolist(),
        "broken_per_class": broken.tolist(),
    }
    for key, group in groups.items():
        after[key] = mcnemar(int(repaired[group].sum()), int(broken[group].sum()))
    images = label.bincount(minlength=num_classes)
    for name in MEASURES:
        weights = class_weights(images if mix is None else mix, name)
        after[f"p_value_{name}"] = p_value_of_measure(repaired, broken, images, weights)
    return {"before": sides[0], "after": after | sides[1]}


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
        ``None`` where it is not finite; ``accuracy``; ``balanced_accuracy``, the mean over classes;
        ``mean_accuracy``, the mean of both; ``errors``; ``errors_per_class``;
        ``called_per_class``, the class that most errors of a class are given, by number, and how
        many, or ``None`` without errors; ``false_calls_per_class``, images of other classes that
        are given this one's name; and ``images_per_class``.

        ``after`` also has ``repaired``, images that the base gets wrong and the adapted network
        right; ``broken``, the reverse; both per class; ``p_value`` of the two, by McNemar's exact
        test; ``p_value_accuracy`` and so on, of the change of each accuracy, by a normal
        distribution with a correction for continuity; and ``negative_flip_rate``, ``broken`` as a
        share of all images (Yan et al. 2021,
        "Positive-Congruent Training", arXiv:2011.09161).

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or there is no batch.
    """
    usable_adapters(model)
    return counts_of(predictions_of(model, batches))


def outcomes_by_part(
    tables: Mapping[str, Predictions],
    targets: Sequence[int] = (),
    mix: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """The counts of several sets as results.json names them: ``test_base`` is before a repair."""
    outcomes = {}
    for part, predictions in tables.items():
        # Mistakes are not drawn from the images that a classifier meets.
        counts = counts_of(predictions, targets, mix if part in ("val", "test") else None)
        if "after" in counts:
            outcomes[part] = counts["after"]
            outcomes[f"{part}_base"] = counts["before"]
        else:
            outcomes[part] = counts["before"]
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
    for part, outcome in outcomes.items():
        numbers = {key: outcome.get(key) for key in LOGGED}
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        if part in ("val", "test", "test_base"):
            for c in classes:
                name = names[c].replace("/", "-")  # else it would begin a level of tags
                if images[c]:
                    numbers[f"accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
        for key, number in numbers.items():
            if number is not None:
                tags[f"{part}/{key}"] = float(number)
    return tags
