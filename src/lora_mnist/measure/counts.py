"""Counts predictions for results.json: errors, accuracies, repaired and broken images."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.lora.model import require_adapters
from lora_mnist.measure.class_weights import MEASURES, class_weights, weighted_accuracy
from lora_mnist.measure.predictions import Predictions, compute_predictions
from lora_mnist.measure.significance import mcnemar, p_value_of_accuracy

#: The counts in each row of a scale curve; without targets only the first.
CURVE_COUNTS = ("errors", "errors_of_target", "errors_elsewhere", "false_positives_of_target")


def confusion_matrix(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix, labels in rows, int64, (num_classes, num_classes)."""
    counts = torch.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def count_errors(
    label: Tensor,
    prediction: Tensor,
    num_classes: int,
    targets: Sequence[int] = (),
    test_prior: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Count predictions, (N,), under ``test_prior``, or with classes as common as in ``label``."""
    if not len(label):
        raise ValueError("expected at least one image")
    wrong = prediction != label
    errors = label[wrong].bincount(minlength=num_classes)
    images = label.bincount(minlength=num_classes)
    false_positives = prediction[wrong].bincount(minlength=num_classes)
    # A matrix of the classes would take gigabytes for ten thousand of them.
    pairs, numbers = torch.unique((label * num_classes + prediction)[wrong], return_counts=True)
    top_confusion_per_class: list[list[int] | None] = [None] * num_classes
    for pair, count in zip(pairs.tolist(), numbers.tolist(), strict=True):
        c, predicted = divmod(pair, num_classes)
        most = top_confusion_per_class[c]
        if most is None or count > most[1]:
            top_confusion_per_class[c] = [predicted, count]
    counts: dict[str, Any] = {}
    for name in MEASURES:
        counts[name] = weighted_accuracy(errors, images, class_weights(test_prior, name, images))
    counts |= {
        "errors": int(errors.sum()),
        "errors_per_class": errors.tolist(),
        "top_confusion_per_class": top_confusion_per_class,
        "false_positives_per_class": false_positives.tolist(),
        "images_per_class": images.tolist(),
    }
    if targets:
        group = list(targets)
        counts["errors_of_target"] = int(errors[group].sum())
        counts["errors_elsewhere"] = counts["errors"] - counts["errors_of_target"]
        numbers = torch.tensor(group)
        is_predicted, is_target = torch.isin(prediction, numbers), torch.isin(label, numbers)
        # An image of a target that is predicted as another target is no false positive.
        false, predicted = int((is_predicted & ~is_target).sum()), int(is_predicted.sum())
        counts["false_positives_of_target"] = false
        counts["precision_of_target"] = (predicted - false) / predicted if predicted else None
    return counts


def count_changes(
    label: Tensor, before: Tensor, after: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the numbers of repaired and of broken images of each class, (num_classes,)."""
    was_right, is_right = before == label, after == label
    repaired = label[is_right & ~was_right].bincount(minlength=num_classes)
    broken = label[was_right & ~is_right].bincount(minlength=num_classes)
    return repaired, broken


def count_both(
    predictions: Predictions, targets: Sequence[int] = (), test_prior: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the counts before and after, each by :func:`count_errors`, for results.json."""
    label, num_classes = predictions.label, predictions.num_classes
    sides: list[dict[str, Any]] = []
    for prediction, loss in zip(predictions.prediction, predictions.loss, strict=True):
        mean_loss = loss.double().mean().item()
        counts = {"loss": mean_loss if math.isfinite(mean_loss) else None}
        sides.append(counts | count_errors(label, prediction, num_classes, targets, test_prior))
    if len(sides) == 1:
        return {"before": sides[0]}
    before, prediction = predictions.prediction
    repaired, broken = count_changes(label, before, prediction, num_classes)
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
    images = sides[0]["images_per_class"]
    for name in MEASURES:
        weights = class_weights(test_prior, name, images)
        after[f"p_value_{name}"] = p_value_of_accuracy(repaired, broken, images, weights)
    return {"before": sides[0], "after": after | sides[1]}


def compare_errors(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, dict[str, Any]]:
    """Count the errors of an adapted network and of its base, for a loop of your own.

    The network stays in its mode and on its device; call ``model.eval()`` first.

    Args:
        model: a network with LoRA (see :func:`lora_mnist.add_lora`): from images to logits of
            shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,), such as a ``DataLoader``.

    Returns:
        ``before``, of the base, and ``after``. Both have ``loss``, the mean cross-entropy in nats,
        ``None`` where it is not finite; ``accuracy``; ``balanced_accuracy``, the mean over classes;
        ``mean_accuracy``, the mean of both; ``errors``; ``errors_per_class``;
        ``top_confusion_per_class``, for each class the class most often predicted in error, by
        index, and how often, or ``None`` without errors; ``false_positives_per_class``, images of
        other classes with this prediction; and ``images_per_class``.

        ``after`` also has ``repaired``, images that the base gets wrong and the adapted network
        right; ``broken``, the reverse; both per class; ``p_value`` of the two, by McNemar's exact
        test; ``p_value_accuracy`` and so on, of the change of each accuracy, by a normal
        approximation with continuity correction; and ``negative_flip_rate``, ``broken`` as a share
        of all images (Yan et al. 2021, "Positive-Congruent Training", arXiv:2011.09161).

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or there is no batch.
    """
    require_adapters(model)
    return count_both(compute_predictions(model, batches))


def count_by_split(
    tables: Mapping[str, Predictions],
    targets: Sequence[int] = (),
    test_prior: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the counts of several splits by results.json's keys; ``test_base`` is the base's."""
    outcomes = {}
    for split, predictions in tables.items():
        # Mistakes are not a sample of a classifier's images, so they have no test prior.
        counts = count_both(predictions, targets, test_prior if split in ("val", "test") else None)
        if "after" in counts:
            outcomes[split] = counts["after"]
            outcomes[f"{split}_base"] = counts["before"]
        else:
            outcomes[split] = counts["before"]
    return outcomes
