"""The offset on the logits of the classes to repair: where it goes, and what it does there."""

import pytest
import torch
from helpers.nets import randomize
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from lora_mnist.classifier.networks import CNN, MLP
from lora_mnist.lora.model import (
    add_lora,
    add_offset,
    merge_lora,
    set_lora_offset,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.lora.offset import Offset, find_last_layer


class Sum(nn.Module):
    """Adds the outputs of two layers up."""

    def __init__(self, size):
        super().__init__()
        self.first, self.second = nn.Linear(size, 3), nn.Linear(size, 3)

    def forward(self, x):
        return self.first(x) + self.second(x)


class Heated(nn.Module):
    """Divides its logits by a temperature, in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        logits = self.head(x)
        logits /= 0.2
        return logits


class Shared(Sum):
    """Two layers with one bias, of which one is for training alone."""

    def __init__(self, size):
        super().__init__(size)
        self.second.bias = self.first.bias

    def forward(self, x):
        return self.first(x)


@pytest.mark.parametrize(
    ("net", "shape", "expected"),
    [
        (MLP(hidden_sizes=[8]), (1, 28, 28), "linear2"),
        (CNN(), (1, 28, 28), "linear1"),
        (resnet18(num_classes=4), (3, 32, 32), "fc"),
        (mobilenet_v3_small(num_classes=4), (3, 32, 32), "classifier.3"),
        (nn.Linear(6, 3), (6,), ""),
        (nn.Linear(6, 3, bias=False), (6,), None),
        (Sum(6), (6,), "second"),
        (Shared(6), (6,), None),
        (Heated(), (6,), None),
        (nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)), (6,), None),
    ],
)
def test_last_layer_is_the_one_whose_bias_moves_the_logits_by_as_much(net, shape, expected):
    assert find_last_layer(net.eval(), torch.randn(2, *shape)) == expected


def test_an_offset_moves_logits_and_stays_with_any_scale(tiny):
    x = torch.randn(4, 6)
    base, direction = tiny(x), torch.tensor([0.0, 1, 0])
    with pytest.raises(ValueError, match="offset=1: expected 0"):
        set_lora_offset(add_lora(tiny), 1)
    set_lora_offset(tiny, 0)
    add_offset(randomize(tiny), "linear2", Offset(direction))
    adapted = tiny(x)
    for scale, logits in ((1, adapted), (0, base)):
        set_lora_scale(tiny, scale)
        set_lora_offset(tiny, -2.5)
        torch.testing.assert_close(tiny(x), logits - 2.5 * direction)
        set_lora_offset(tiny, 0)
        assert torch.equal(tiny(x), logits)


def test_an_offset_is_merged_and_back_as_lora_is(tiny):
    """A merged one cannot be set, and the forward pass of the base leaves its mode alone."""
    offset = Offset(torch.tensor([0.0, 1, 0]))
    merge_lora(add_offset(add_lora(tiny), "linear2", offset))
    with pytest.raises(ValueError, match="merged"):
        set_lora_offset(tiny, 1)
    unmerge_lora(tiny).train()
    tiny(torch.randn(4, 6))
    assert (offset.training, tiny.linear2.training) == (True, False)
