"""Networks small enough to be understood by eye."""

import torch
from torch import nn


class TinyNet(nn.Module):
    """Two linear layers with biases, in the shape of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(6, 5)
        self.linear2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(torch.relu(self.linear1(x)))
