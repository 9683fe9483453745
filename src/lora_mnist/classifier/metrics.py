"""How errors of a network and its base are counted."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lora_mnist.classifier.significance import mcnemar
from lora_mnist.lora.model import lora_disabled

#: Per image: index, label, predictions and confidences of base and adapted network. Without an
#: adapter, the network is the base.
_COLUMNS = ("index", "label", "base", "adapted", "base_probability", "adapted_probability")


class Evaluation(Metric):
    """Predictions of a network and its base for each image of a set, and the errors in them.

    As a torchmetrics metric it adds up over batches and over the processes of a distributed run:
    image ``j`` of process ``r`` is image ``j * processes + r`` of all, as
    :class:`lora_mnist.data.ImageDataModule` shares them out.
    """

    label: list[Tensor]

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        #: The images that compute() counted last: columns of shape (N,), in their order.
        self.predictions: dict[str, Tensor] = {}
        for name in _COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for side in ("base", "adapted"):
            self.add_state(f"{side}_loss", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, base_logits: Tensor | None = None) -> None:
        """Count a batch: logits of shape (N, num_classes), ``labels`` int64 of shape (N,)."""
        rank, processes = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, processes = dist.get_rank(), dist.get_world_size()
        first = sum(map(len, self.label))
        place = torch.arange(first, first + len(labels), device=labels.device)
        batch = {"index": place * processes + rank, "label": labels}
        sides = {"base": logits}
        if base_logits is not None:
            sides = {"base": base_logits, "adapted": logits}
        for side, side_logits in sides.items():
            batch[side] = side_logits.argmax(dim=1)
            probabilities = side_logits.float().softmax(dim=1)  # NumPy knows no bfloat16
            batch[f"{side}_probability"] = probabilities.gather(1, batch[side][:, None])[:, 0]
            loss = getattr(self, f"{side}_loss")
            loss += F.cross_entropy(side_logits, labels) * len(labels)
        for name, values in batch.items():
            getattr(self, name).append(values)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Errors of ``base`` and ``adapted`` as in results.json.

        Returns:
            Both with ``loss``, the mean cross-entropy in nats, ``None`` where it is not finite;
            ``accuracy``; ``errors``; ``errors_per_class``; ``false_calls_per_class``, images of
            other classes that are given this one's name; ``precision_per_class``, the share of
            right ones among the images that are given a class's name, ``None`` where there are
            none; and ``images_per_class``. ``adapted`` also with ``repaired``, images that the
            base gets wrong and the adapted network right;
            ``broken``, the reverse; both per class; ``p_value`` of the two
            (:func:`.significance.mcnemar`); and ``negative_flip_rate``, ``broken`` as a share of
            all images (Yan et al. 2021, "Positive-Congruent Training", arXiv:2011.09161).
        """
        tensors = {}
        for name in _COLUMNS:
            values = getattr(self, name)
            if len(values):
                tensors[name] = dim_zero_cat(values)
        order = tensors["index"].argsort()
        self.predictions = {name: values[order] for name, values in tensors.items()}
        label = self.predictions["label"]
        outcomes: dict[str, dict[str, Any]] = {}
        for side in ("base", "adapted"):
            if side in self.predictions:
                prediction = self.predictions[side]
                is_wrong = prediction != label
                errors, images = self._per_class(label[is_wrong]), self._per_class(label)
                false_calls = self._per_class(prediction[is_wrong])
                precision: list[float | None] = []
                for count, wrong, false in zip(images, errors, false_calls, strict=True):
                    called = count - wrong + false
                    precision.append((count - wrong) / called if called else None)
                loss = (getattr(self, f"{side}_loss").cpu() / len(label)).item()
                outcomes[side] = {
                    "loss": loss if math.isfinite(loss) else None,
                    "accuracy": (len(label) - sum(errors)) / len(label),
                    "errors": sum(errors),
                    "errors_per_class": errors,
                    "false_calls_per_class": false_calls,
                    "precision_per_class": precision,
                    "images_per_class": images,
                }
        if "adapted" in outcomes:
            before, after = (self.predictions[side] == label for side in ("base", "adapted"))
            repaired = self._per_class(label[after & ~before])
            broken = self._per_class(label[before & ~after])
            outcomes["adapted"] = {
                "repaired": sum(repaired),
                "broken": sum(broken),
                "negative_flip_rate": sum(broken) / len(label),
                "p_value": mcnemar(sum(repaired), sum(broken)),
                "repaired_per_class": repaired,
                "broken_per_class": broken,
                **outcomes["adapted"],
            }
        return outcomes

    def _per_class(self, labels: Tensor) -> list[int]:
        """How many of ``labels`` are of each class."""
        counts: list[int] = torch.bincount(labels.cpu(), minlength=self.num_classes).tolist()
        return counts

    def compute_and_reset(self, split: str) -> dict[str, dict[str, Any]]:
        """The outcome of ``split`` and, with a base, of ``<split>_base``; then start afresh."""
        outcomes = self.compute()
        self.reset()
        if "adapted" not in outcomes:
            return {split: outcomes["base"]}
        return {split: outcomes["adapted"], f"{split}_base": outcomes["base"]}


def outcome_of(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The outcome of ``net`` as it is, without a base beside it, in this process alone.

    ValueError, if there is no batch.
    """
    return _evaluated(net, batches, has_base=False)["base"]  # a network alone is the base


@torch.no_grad()
def _evaluated(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], has_base: bool
) -> dict[str, dict[str, Any]]:
    """The counts of :meth:`Evaluation.compute`; the base is ``net`` without adapters."""
    evaluation: Evaluation | None = None
    base_logits = None
    for images, labels in batches:
        if has_base:
            with lora_disabled(net):
                base_logits = net(images)
        logits = net(images)
        if evaluation is None:
            # torchmetrics' option: no sum over processes, each of which has all images here.
            evaluation = Evaluation(logits.shape[1], sync_on_compute=False).to(logits.device)
        evaluation.update(logits, labels, base_logits)
    if evaluation is None:
        raise ValueError("batches: expected at least one batch of images and labels")
    return evaluation.compute()


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
        ``base`` and ``adapted``, as :meth:`Evaluation.compute` describes them.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, or there is no batch.
    """
    return _evaluated(model, batches, has_base=True)
