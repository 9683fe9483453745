"""Which weights target_modules means."""

import pytest
import torch
from torch import nn

from lora_mnist.lora.model import add_lora
from lora_mnist.lora.target_modules import layers_to_adapt


def test_all_names_the_large_weights_that_it_leaves_out(caplog):
    add_lora(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(60, 60)))  # too few to speak of
    add_lora(nn.MultiheadAttention(8, 2), target_modules=["all", "in_proj_weight"])
    assert not caplog.records
    add_lora(nn.Sequential(*[nn.Conv1d(4, size, 3) for size in range(10, 17)], nn.Linear(3, 3)))
    assert caplog.messages[0].endswith("the largest are: 6, 5, 4, 3, 2")


def mixed():
    """One of each: factored layers, others that can carry an adapter, and some that cannot."""
    indices = nn.Parameter(torch.ones(2, 2).int(), requires_grad=False)
    layers = {
        "embed": nn.Embedding(7, 4),
        "conv": nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        "depthwise": nn.Conv2d(4, 4, 3, groups=4),
        "block": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        "rnn": nn.GRU(4, 3),
        "linear": nn.Linear(3, 2),
        "indices": nn.ParameterList([indices]),
    }
    return nn.ModuleDict(layers)


LINEAR = ["block.self_attn.out_proj", "block.linear1", "block.linear2", "linear"]
IN_PROJ = "block.self_attn.in_proj_weight"
RNN = ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("all", ["conv.0", *LINEAR]),
        ("all-linear", LINEAR),
        ("linear", ["linear"]),
        (("0", "linear", "in_proj_weight"), ["conv.0", IN_PROJ, "linear"]),
        # All but indices and those of one dimension.
        (".*", ["embed", "conv.0", "depthwise", IN_PROJ, *LINEAR[:3], *RNN, "linear"]),
    ],
)
def test_target_modules_choose_weights(target_modules, expected):
    assert list(layers_to_adapt(mixed(), target_modules)) == expected
