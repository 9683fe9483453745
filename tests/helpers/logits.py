"""Logits of six images, before and after a repair, to be counted by hand."""

import torch
import torch.nn.functional as F

from lora_mnist.lora.point import BASE
from lora_mnist.measure.predictions import compute_predictions_at

#: The last of four classes has no image, and no image is given its name.
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
BEFORE = 9.0 * F.one_hot(torch.tensor([0, 1, 2, 1, 0, 1]), 4)
AFTER = 9.0 * F.one_hot(torch.tensor([0, 0, 1, 1, 1, 2]), 4)


def make_table(before, after=None):
    """The table of these logits of a base, and of base and adapter."""
    table = compute_predictions_at(torch.nn.Identity(), [(before, LABELS)], [BASE])
    return table if after is None else table.followed_by(make_table(after))
