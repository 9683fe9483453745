from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.lora import add_lora, has_lora, lora_parameters, remove_lora


def randomize(model: nn.Module) -> nn.Module:
    """Give lora_B values, so that the adapters change something."""
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model


def dense(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a TinyNet computes with the effective weights that its layers show."""
    hidden = torch.relu(F.linear(x, model.linear1.weight, model.linear1.bias))
    return F.linear(hidden, model.linear2.weight, model.linear2.bias)


def test_other_parametrizations_are_respected(tiny: nn.Module) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    x = torch.randn(4, 6)
    randomize(add_lora(tiny))
    parametrize.register_parametrization(tiny.linear1, "weight", Double())
    torch.testing.assert_close(tiny(x), dense(tiny, x))
    with pytest.raises(ValueError, match="another parametrization"):
        remove_lora(tiny)
    assert has_lora(tiny)


def test_a_subclass_with_its_own_forward_keeps_it() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layer = Shifted(3, 2)
    x = torch.randn(4, 3)
    base = layer(x)
    add_lora(layer, target_modules="")
    assert torch.equal(layer(x), base)
    randomize(layer)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + 1)


def conv_net(dtype: torch.dtype = torch.float64, **geometry: Any) -> nn.Module:
    """One convolution, 2 to 4 channels, of any geometry."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, **geometry})).to(dtype)


def test_grouped_convolutions_go_through_the_dense_weight() -> None:
    net = conv_net(groups=2)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    base = net(x)
    randomize(add_lora(net, rank=2, target_modules="0"))
    expected = F.conv2d(x, net[0].weight, net[0].bias, groups=2)
    assert torch.equal(net(x), expected)
    assert not torch.allclose(expected, base)
    assert torch.equal(remove_lora(net)(x), base)
