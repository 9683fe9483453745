"""The training loss: the cross-entropy, in which the class to repair may have a weight."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_mnist.errors import require_number


class Loss(nn.Module):
    """The cross-entropy ``-log softmax(z)_y``, averaged over a batch.

    With ``target_weight = w`` it is ``w * mean(learnt images) + (1 - w) * mean(replayed images)``,
    or the plain mean where all images of a batch are of one kind.

    Args:
        target_weight: the share of the images to learn, 0 to 1; ``None``: each image counts alike.
    """

    def __init__(self, target_weight: float | None = None) -> None:
        super().__init__()
        if target_weight is not None:
            require_number("target_weight", target_weight, 0, 1)
        self.target_weight = target_weight

    def forward(self, logits: Tensor, labels: Tensor, replayed: int = 0) -> Tensor:
        """The loss of a batch, a scalar, from logits (N, num_classes) and labels, int64, (N,).

        The last ``replayed`` images of the batch are replayed.
        """
        losses = F.cross_entropy(logits, labels, reduction="none")
        learnt = len(labels) - replayed
        if self.target_weight is None or learnt == 0 or replayed == 0:
            return losses.mean()
        weights = torch.full_like(losses, (1 - self.target_weight) / replayed)
        weights[:learnt] = self.target_weight / learnt
        return (weights * losses).sum()
