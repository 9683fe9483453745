"""The training loss: losses of single images, and their mean over a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_mnist.errors import require_number


def hinge(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """``max(0, margin - (z_y - max_{c != y} z_c))``: zero once the label leads by ``margin``.

    The multiclass hinge loss of Crammer and Singer 2001, "On the Algorithmic Implementation of
    Multiclass Kernel-based Vector Machines", JMLR 2. An image whose label leads by the margin gives
    no gradient. Logits ``z`` of shape (N, num_classes) and labels ``y`` give the loss of each
    image, shape (N,).
    """
    label = labels.unsqueeze(1)
    lead = logits.gather(1, label) - logits.scatter(1, label, -math.inf).amax(1, keepdim=True)
    return F.relu(margin - lead.squeeze(1))


def distillation(logits: Tensor, base_logits: Tensor) -> Tensor:
    """``KL(softmax(z_base) || softmax(z))``: how far the output moved from the base's, in nats.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2,
    at a temperature of 1; with the network before fine-tuning as teacher: Li and Hoiem 2016,
    "Learning without Forgetting", arXiv:1606.09282. Logits of shape (N, num_classes) give the loss
    of each image, shape (N,).
    """
    student, teacher = F.log_softmax(logits, dim=1), F.log_softmax(base_logits, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def weighted_mean(losses: Tensor, is_target: Tensor, target_weight: float) -> Tensor:
    """``w mean(target's losses) + (1 - w) mean(others')``, with ``w = target_weight``.

    Losses and ``is_target`` of shape (N,) give a scalar; the plain mean where all are of one kind.
    """
    target = is_target.sum()
    others = is_target.numel() - target
    # Where all are of one kind a division by zero gives numbers that the last line leaves out.
    weights = torch.where(is_target, target_weight / target, (1 - target_weight) / others)
    return torch.where((target == 0) | (others == 0), losses.mean(), (weights * losses).sum())


class Loss(nn.Module):
    """The loss of a training batch: right classes, and outputs that stay near the base's.

    ``mean over images of loss(z, y) + distill * [not replayed] * distillation(z, z_base)``, where
    ``loss`` is :func:`hinge` or the cross-entropy ``-log softmax(z)_y``, which is zero only at full
    certainty, and so never stops pushing.

    Args:
        margin: the margin of :func:`hinge`, >= 0; ``None``: the cross-entropy.
        distill: weight of :func:`distillation`, on images that are not replayed; >= 0, 0 for none.
        target_weight: see :func:`weighted_mean`, 0 to 1; ``None``: each image counts alike.
    """

    def __init__(
        self,
        margin: float | None = None,
        distill: float = 0.0,
        target_weight: float | None = None,
    ) -> None:
        super().__init__()
        require_number("distill", distill, 0, 1e6)
        if margin is not None:
            require_number("margin", margin, 0, 1e6)
        if target_weight is not None:
            require_number("target_weight", target_weight, 0, 1)
        self.margin = margin
        self.distill = float(distill)
        self.target_weight = target_weight

    def forward(
        self, logits: Tensor, labels: Tensor, base_logits: Tensor | None, replayed: int = 0
    ) -> Tensor:
        """The loss of a batch, a scalar.

        ``base_logits`` are needed where ``distill`` is not 0. The last ``replayed`` images of the
        batch are replayed.
        """
        is_learnt = torch.arange(len(labels), device=labels.device) < len(labels) - replayed
        if self.margin is None:
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            losses = hinge(logits, labels, self.margin)
        if base_logits is not None:
            losses = losses + self.distill * distillation(logits, base_logits) * is_learnt
        if self.target_weight is None:
            return losses.mean()
        return weighted_mean(losses, is_learnt, self.target_weight)
