"""The network that is pretrained and then repaired."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected classifier with ReLU between its layers, ``linear1`` to ``linearN``.

    With the default sizes it is the notebook's ``RichBoyNet``: 784-1000-2000-10, 2,807,010
    parameters, far larger than the task needs so that LoRA has something to be small beside.

    Args:
        in_features: number of input values per image, all dimensions but the first.
        hidden_sizes: width of each hidden layer, all >= 1.
        num_classes: number of logits.

    Raises:
        ValueError: if a size is not an integer >= 1.
    """

    def __init__(
        self,
        in_features: int = 28 * 28,
        hidden_sizes: Sequence[int] = (1000, 2000),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden_sizes, num_classes]
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(f"hidden_sizes={list(hidden_sizes)}: expected integers >= 1")
        self.depth = len(sizes) - 1
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"linear{number}", nn.Linear(fan_in, fan_out))
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, ...) with ``in_features`` values each."""
        hidden = images.flatten(start_dim=1)
        # By name: PEFT puts layers of its own classes in place of these.
        for number in range(1, self.depth):
            hidden = self.relu(self.get_submodule(f"linear{number}")(hidden))
        logits: Tensor = self.get_submodule(f"linear{self.depth}")(hidden)
        return logits
