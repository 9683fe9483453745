import logging
from collections.abc import Callable
from typing import Any

import pytest
from helpers.nets import TinyNet
from peft import LoraConfig, get_peft_model
from torch import nn

from lora_mnist.lora.targets import by_pattern, target_weights


class Mixed(nn.Module):
    """One of each: factored layers, others that can carry an adapter, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.rnn = nn.GRU(4, 3)
        self.linear = nn.Linear(3, 2)


def names(target_modules: Any, model: nn.Module | None = None) -> list[str]:
    return list(target_weights(model or Mixed(), target_modules))


LINEAR = ["block.self_attn.out_proj", "block.linear1", "block.linear2", "linear"]


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("all", ["conv.0", *LINEAR]),
        ("all-linear", LINEAR),
        ("All-Linear", LINEAR),
        ("linear", ["linear"]),
        (r".*linear\d?", ["block.linear1", "block.linear2", "linear"]),
        (["linear"], ["linear"]),
        (["linear", "linear2"], ["block.linear2", "linear"]),
        (("0", "embed"), ["embed", "conv.0"]),
        ({"block.linear1"}, ["block.linear1"]),
        (["depthwise"], ["depthwise"]),
        (["in_proj_weight"], ["block.self_attn.in_proj_weight"]),
        (["self_attn"], ["block.self_attn.in_proj_weight", "block.self_attn.out_proj"]),
        ("rnn", ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]),
        (["weight_hh_l0"], ["rnn.weight_hh_l0"]),
    ],
)
def test_target_modules_choose_weights(target_modules: Any, expected: list[str]) -> None:
    assert names(target_modules) == expected


@pytest.mark.parametrize("target_modules", ["all-linear", r"li.*2", ["linear1"], ["linear2"]])
def test_the_same_layers_as_in_peft(target_modules: Any) -> None:
    theirs = get_peft_model(TinyNet(), LoraConfig(target_modules=target_modules))
    adapted = [name for name, m in theirs.named_modules() if hasattr(m, "lora_A")]
    ours = names(target_modules, TinyNet())
    assert adapted == [f"base_model.model.{name}" for name in ours]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.Linear(3, 2), [""]),
        (lambda: nn.LSTM(3, 2), ["weight_ih_l0", "weight_hh_l0"]),
        (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj"]),
    ],
)
def test_a_network_of_a_single_layer(model: Callable[[], nn.Module], expected: list[str]) -> None:
    assert names("", model()) == expected


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        ("conv", r"target_modules=conv: expected to match a layer, of: embed, conv.0, depthwise"),
        (["linear", "lin"], r"target_modules=\['linear', 'lin'\]: .* a layer with lin, of: embed"),
        (["conv.1"], "expected to match a layer with conv.1"),
        ([], r"target_modules=\[\]: expected all, all-linear, a regular expression or a list"),
        ([1], r"target_modules=\[1\]: expected all, all-linear"),
        (None, "target_modules=None: expected all, all-linear"),
        ("(", r"target_modules=\(: expected a regular expression"),
        ("a{99999999999999}", "expected a regular expression"),
    ],
)
def test_what_names_nothing_is_an_error(target_modules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(target_modules)


@pytest.mark.parametrize(
    ("model", "there"), [(nn.ReLU(), "none"), (nn.Sequential(nn.Conv1d(1, 1, 1)), "0")]
)
def test_a_network_without_adaptable_layers(model: nn.Module, there: str) -> None:
    message = f"target_modules=all: expected to match a linear or a conv2d layer, of: {there}$"
    with pytest.raises(ValueError, match=message):
        names("all", model)


def test_many_names_are_cut_short() -> None:
    with pytest.raises(ValueError, match="of: 0, 1, .*, 19 and 80 more$"):
        names("x", nn.Sequential(*(nn.Linear(1, 1) for _ in range(100))))


def test_layers_that_cannot_be_adapted_are_told(caplog: pytest.LogCaptureFixture) -> None:
    names("conv.*|linear")
    assert caplog.messages == [
        "target_modules=conv.*|linear also names conv.1, which stay as they are: an adapter needs "
        "a weight of two or more dimensions"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for harmless in ("all", "all-linear", "linear", ["linear1", "linear2"]):
            names(harmless)
    assert not caplog.records


def test_patterns_give_the_first_value_that_fits() -> None:
    layers = ["a.linear1", "b.linear1", "linear12", "x"]
    pattern = {"linear1.": 5, "b.linear1": 2, "linear1": 3}
    assert list(by_pattern("rank_pattern", pattern, layers, 1).values()) == [3, 2, 5, 1]
    with pytest.raises(ValueError, match=r"rank_pattern={\^linear1: 4}: expected a layer of: a"):
        by_pattern("rank_pattern", {"linear1": 3, "^linear1": 4}, layers, 1)
