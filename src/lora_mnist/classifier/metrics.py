"""How errors are counted, for a network and its base, and what loggers get of them.

Both counts are torchmetrics metrics, so they add up over batches and over the processes of a
distributed run. :func:`compare_errors` is the same for a loop without Lightning.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from lora_mnist.classifier.significance import mcnemar, wilson
from lora_mnist.lora import lora_disabled

#: Confusions that results.json names.
_NAMED = 3


class ErrorMetric(MulticlassConfusionMatrix):
    """A confusion matrix, the errors of each class that follow from it, and the mean loss.

    ``confmat[y, c]`` counts images of class ``y`` that were taken for ``c``; the errors of
    class ``y`` are its row without the diagonal.

    Args:
        num_classes: number of classes.
    """

    loss_sum: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, validate_args=False)
        self.add_state("loss_sum", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``logits`` of shape (N, num_classes), ``labels`` int64 of shape (N,)."""
        super().update(logits, labels)
        self.loss_sum += F.cross_entropy(logits, labels) * len(labels)

    def compute(self) -> dict[str, Any]:  # type: ignore[override]
        """What results.json holds of the images: plain numbers and lists of them.

        ``errors_interval_per_class`` are 95% intervals, see :func:`.significance.wilson`; ``loss``
        is the mean cross-entropy in nats, whatever training minimises; ``None`` where it is not
        finite, for which JSON has no number.
        """
        images = self.confmat.sum(dim=1)
        errors = (images - self.confmat.diagonal()).tolist()
        total = images.sum()
        loss = (self.loss_sum / total).item()
        intervals = []
        for wrong, of in zip(errors, images.tolist(), strict=True):
            low, high = wilson(wrong, of)
            intervals.append([round(low, 2), round(high, 2)])
        wrong = (self.confmat - torch.diag(self.confmat.diagonal())).flatten()
        confusions = []
        for place in wrong.argsort(descending=True, stable=True)[:_NAMED].tolist():
            if count := int(wrong[place]):
                label, taken_for = divmod(place, len(images))
                confusions.append({"label": label, "taken_for": taken_for, "images": count})
        return {
            "loss": loss if math.isfinite(loss) else None,
            "accuracy": (int(total) - sum(errors)) / int(total),
            "errors": sum(errors),
            "errors_per_class": errors,
            "errors_interval_per_class": intervals,
            "images_per_class": images.tolist(),
            "confusions": confusions,
        }


class RepairMetric(Metric):
    """What a repair did, class by class: images repaired, and images broken.

    An image is repaired if the base gets it wrong and the network right; broken is the reverse.
    ``errors of the network = errors of the base - repaired + broken``.

    Args:
        num_classes: number of classes.
    """

    repaired: Tensor
    broken: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("repaired", "broken"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, base_logits: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch; both logits have shape (N, num_classes), ``labels`` shape (N,)."""
        before, after = (z.argmax(dim=1) == labels for z in (base_logits, logits))
        for count, changed in ((self.repaired, after & ~before), (self.broken, before & ~after)):
            count += torch.bincount(labels[changed], minlength=len(count))

    def compute(self) -> dict[str, Any]:
        """The counts as results.json holds them, and :func:`.significance.mcnemar` of them."""
        repaired, broken = self.repaired.tolist(), self.broken.tolist()
        return {
            "repaired": sum(repaired),
            "broken": sum(broken),
            "p_value": mcnemar(sum(repaired), sum(broken)),
            "repaired_per_class": repaired,
            "broken_per_class": broken,
        }


#: What is kept of each image; a network without a base is one itself.
_PREDICTED = ("index", "label", "base", "adapted", "base_probability", "adapted_probability")


class PredictionMetric(Metric):
    """What was predicted for each image, and how surely; what the images show, and in which order.

    With several processes image ``j`` of process ``r`` is image ``j * processes + r`` of all, as
    :class:`lora_mnist.data.ImageDataModule` shares them out.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in _PREDICTED:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._seen = 0

    def update(self, labels: Tensor, **logits: Tensor) -> None:
        """Keep a batch: ``labels`` of shape (N,), and the logits of ``base`` and ``adapted``."""
        rank, processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, processes = dist.get_rank(), dist.get_world_size()
        place = torch.arange(self._seen, self._seen + len(labels), device=labels.device)
        self._seen += len(labels)
        batch = {"index": place * processes + rank, "label": labels}
        for side, of_side in logits.items():
            batch[side] = of_side.argmax(dim=1)
            probabilities = of_side.float().softmax(dim=1)  # NumPy knows no bfloat16
            batch[f"{side}_probability"] = probabilities.gather(1, batch[side][:, None])[:, 0]
        for name, values in batch.items():
            getattr(self, name).append(values)

    def compute(self) -> dict[str, Tensor]:
        """A tensor of shape (N,) for each of the names, in the order of the images."""
        states = {name: getattr(self, name) for name in _PREDICTED}
        tensors = {name: dim_zero_cat(values) for name, values in states.items() if len(values)}
        order = tensors["index"].argsort()
        return {name: values[order] for name, values in tensors.items()}

    def reset(self) -> None:
        super().reset()
        self._seen = 0


class Evaluation(nn.Module):
    """All that is counted on one set of images: the network, its base, and what the repair did.

    Args:
        num_classes: number of classes.
        keep_predictions: whether the prediction for each image is kept too.

    Attributes:
        predictions: what :class:`PredictionMetric` kept, by name; empty where it was not asked to.
    """

    def __init__(self, num_classes: int, keep_predictions: bool = False) -> None:
        super().__init__()
        self.keeper = PredictionMetric() if keep_predictions else None
        self.predictions: dict[str, Tensor] = {}
        self.network = ErrorMetric(num_classes)
        self.base = ErrorMetric(num_classes)
        self.repair = RepairMetric(num_classes)
        self._has_base = False

    def update(self, logits: Tensor, labels: Tensor, base_logits: Tensor | None = None) -> None:
        """Count a batch: logits of shape (N, num_classes), ``labels`` int64 of shape (N,)."""
        self.network.update(logits, labels)
        self._has_base = base_logits is not None
        if base_logits is not None:
            self.base.update(base_logits, labels)
            self.repair.update(base_logits, logits, labels)
        if self.keeper is not None:
            pair = {} if base_logits is None else {"adapted": logits}
            self.keeper.update(labels, base=logits if base_logits is None else base_logits, **pair)

    def conclude(self, split: str) -> dict[str, dict[str, Any]]:
        """The outcome of ``split`` and, with a base, of ``<split>_base``; then start afresh."""
        outcomes = {split: self.network.compute()}
        if self._has_base:
            outcomes[split] = self.repair.compute() | outcomes[split]
            outcomes[f"{split}_base"] = self.base.compute()
        if self.keeper is not None:
            self.predictions = self.keeper.compute()
            self.keeper.reset()
        for metric in (self.network, self.base, self.repair):
            metric.reset()
        return outcomes


#: With more classes only those to repair have a curve of their own.
_MOST_CURVES = 16


def scalars(
    split: str,
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = (),
    targets: Sequence[int] | None = None,
) -> dict[str, float]:
    """The numbers of ``split`` that loggers get, and of its base, by tag.

    Args:
        split: val or test.
        outcomes: what was counted; ``<split>_base`` may be missing.
        names: of the classes, for a curve of each; of very many, of those to repair alone.
        targets: the classes to repair.
    """
    classes: Sequence[int] = range(len(names))
    if len(names) > _MOST_CURVES:
        classes = list(targets or ())[:_MOST_CURVES]
    tags: dict[str, float] = {}
    for side in (split, f"{split}_base"):
        if side not in outcomes:
            continue
        outcome = outcomes[side]
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        for key in ("accuracy", "loss", "errors", "repaired", "broken"):
            if outcome.get(key) is not None:
                tags[f"{side}/{key}"] = float(outcome[key])
        if targets:
            of_target = sum(errors[c] for c in targets)
            tags[f"{side}/errors_of_target"] = float(of_target)
            tags[f"{side}/errors_elsewhere"] = float(sum(errors) - of_target)
        for c in classes:
            if images[c]:
                name = names[c].replace("/", "-")  # else it would begin a level of tags
                tags[f"{side}/accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
    return tags


@torch.no_grad()
def compare_errors(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None = None
) -> dict[str, Any]:
    """Errors of an adapted network beside those of its base, for a loop of one's own.

    The network is asked in the mode and on the device that it is in; call ``model.eval()`` first.

    Args:
        model: a network with LoRA (see :func:`lora_mnist.add_lora`): from images to logits of
            shape (N, num_classes).
        batches: images and their labels, int64 of shape (N,), such as a ``DataLoader``.
        num_classes: number of classes; ``None`` takes the number of logits.

    Returns:
        ``base`` and ``adapted``, each with ``loss``, ``accuracy``, ``errors``,
        ``errors_per_class``, their 95% Wilson intervals ``errors_interval_per_class``,
        ``images_per_class`` and the largest ``confusions``; ``adapted`` also with ``repaired``,
        ``broken``, McNemar's exact ``p_value`` of the two, ``repaired_per_class`` and
        ``broken_per_class``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or there is no batch.
    """
    evaluation: Evaluation | None = None
    for images, labels in batches:
        with lora_disabled(model):
            base_logits = model(images)
        logits = model(images)
        if evaluation is None:
            evaluation = Evaluation(num_classes or logits.shape[1]).to(logits.device)
        evaluation.update(logits, labels, base_logits)
    if evaluation is None:
        raise ValueError("batches: expected at least one batch of images and labels")
    outcomes = evaluation.conclude("adapted")
    return {"base": outcomes["adapted_base"], "adapted": outcomes["adapted"]}
