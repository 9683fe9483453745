import re

import pytest
import torch
from torch import nn

from lora_mnist.lora.targets import by_pattern, target_weights


class Mixed(nn.Module):
    """One of each: factored layers, others that can carry an adapter, and some that cannot."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.rnn = nn.GRU(4, 3)
        self.linear = nn.Linear(3, 2)
        self.lazy = nn.LazyLinear(3)
        indices = nn.Parameter(torch.ones(2, 2).int(), requires_grad=False)
        self.indices = nn.ParameterList([indices])


LINEAR = ["block.self_attn.out_proj", "block.linear1", "block.linear2", "linear"]
IN_PROJ = "block.self_attn.in_proj_weight"
RNN = ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("all", ["conv.0", *LINEAR]),
        ("all-linear", LINEAR),
        ("linear", ["linear"]),
        (r".*linear\d?", ["block.linear1", "block.linear2", "linear"]),
        (["linear", "linear2"], ["block.linear2", "linear"]),
        (("0", "embed"), ["embed", "conv.0"]),
        ({"block.linear1"}, ["block.linear1"]),
        (["depthwise"], ["depthwise"]),
        (["in_proj_weight"], [IN_PROJ]),
        (r"rnn\..*", RNN),
        (
            ".*",  # all but lazy, indices and those of one dimension
            ["embed", "conv.0", "depthwise", IN_PROJ, *LINEAR[:3], *RNN, "linear"],
        ),
        (["weight_hh_l0"], ["rnn.weight_hh_l0"]),
    ],
)
def test_target_modules_choose_weights(target_modules, expected):
    assert list(target_weights(Mixed(), target_modules)) == expected


CONVS = nn.Sequential(*(nn.Conv1d(1, 1, 1) for _ in range(100)))


@pytest.mark.parametrize(
    ("model", "target_modules", "message"),
    [
        (Mixed(), "conv", "some of: embed, conv.0, depthwise"),
        (Mixed(), ["linear", "lin"], "a layer with lin, of: embed"),
        (Mixed(), ["conv.1"], "a layer with conv.1"),
        (Mixed(), [], "some of: embed"),
        (Mixed(), [1], "a layer with 1, of: embed"),
        (Mixed(), None, "all, all-linear, a regular expression or a list"),
        (Mixed(), "(", "a regular expression"),
        (nn.ReLU(), "all", "some of: none"),
        (CONVS, "all", "some of: 0, 1, .*, 19 and 80 more"),
    ],
)
def test_what_names_nothing_is_an_error(model, target_modules, message):
    start = re.escape(f"target_modules={target_modules}: expected ")
    with pytest.raises(ValueError, match=rf"^{start}{message}[^\n]*$"):
        target_weights(model, target_modules)


@pytest.mark.parametrize("key", ["near1", "linear.", ".*1", "^a", "", 3])
def test_a_key_that_names_no_layer_is_refused(key):
    start = re.escape(f"rank_pattern={{{key}: 4}}: expected a layer's name")
    with pytest.raises(ValueError, match=rf"^{start}[^\n]*, of: a.linear1, b$"):
        by_pattern("rank_pattern", {"b": 3, key: 4}, ["a.linear1", "b"], 1)
