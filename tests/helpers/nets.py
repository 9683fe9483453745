"""Networks small enough to be understood by eye, and adapters on them."""

import torch
import torch.nn.functional as F
from torch import nn

from lora_mnist.lora import LoRAParametrization, lora_parameters


class TinyNet(nn.Module):
    """Two linear layers with biases, in the shape of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(6, 5)
        self.linear2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(torch.relu(self.linear1(x)))


def randomize(model: nn.Module) -> nn.Module:
    """Give lora_B values, so that the adapters change something."""
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model


def dense(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a TinyNet computes with the effective weights that its layers show."""
    hidden = torch.relu(F.linear(x, model.linear1.weight, model.linear1.bias))
    return F.linear(hidden, model.linear2.weight, model.linear2.bias)


def adapters(model: nn.Module) -> list[LoRAParametrization]:
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]
