import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import add_lora, load_adapter, lora_layers, save_adapter
from lora_mnist.lora.peft import layer_settings


class ConvNet(nn.Module):
    """Convolutions of several geometries, one name the end of another, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 3, (3, 2), stride=2), nn.ReLU())
        self.block.add_module("conv", nn.Conv2d(3, 5, 1, bias=False))
        self.linear = nn.Linear(5 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.block(torch.relu(self.conv(x))).flatten(1))


def small_mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(in_features=12, hidden_sizes=[9, 7], num_classes=4)


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet()


IMAGES = {
    small_mlp: torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(2)),
    small_cnn: torch.randn(6, 1, 8, 7, generator=torch.Generator().manual_seed(2)),
}


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_mlp, {}),
        (small_mlp, {"rank": 4, "alpha": 3.0, "use_rslora": True, "dropout": 0.5}),
        (small_mlp, {"target_modules": "linear[13]", "init": "kaiming"}),
        (small_mlp, {"rank_pattern": {"linear2": 3}, "alpha_pattern": {"linear1": 0.5}}),
        (small_mlp, {"init": "pissa", "rank": 2}),
        (
            small_mlp,
            {"init": "pissa", "rank": 3, "use_rslora": True, "alpha_pattern": {"linear1": 2.0}},
        ),
        (small_cnn, {"target_modules": ".*(conv|linear|0)", "rank": 2}),
        (small_cnn, {"target_modules": "conv", "rank": 2}),  # and not block.conv
        (small_cnn, {"target_modules": ".*conv", "rank_pattern": {"^conv": 3}}),
        (small_cnn, {"target_modules": ".*conv", "init": "pissa", "rank": 3, "alpha": 2.0}),
    ],
)
def test_our_adapters_load_here_and_in_peft(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"target_modules": "linear[0-9]", **options}
    ours = randomized(add_lora(make(), **options)).eval()
    save_adapter(ours, tmp_path)
    x = IMAGES[make]
    assert not torch.allclose(ours(x), make()(x), atol=1e-2)
    again = load_adapter(make(), tmp_path)
    torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
    theirs = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)
    adapted = {name for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {f"base_model.model.{name}" for name, _ in lora_layers(ours)}


LINEAR = ["linear1", "linear2", "linear3"]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_mlp, {"target_modules": LINEAR}),
        (small_mlp, {"target_modules": LINEAR, "r": 3, "lora_alpha": 5}),
        (small_mlp, {"target_modules": LINEAR, "r": 4, "use_rslora": True}),
        (small_mlp, {"target_modules": ["linear2"], "lora_dropout": 0.3}),
        (small_mlp, {"target_modules": r"linear\d", "exclude_modules": ["linear1"]}),
        (small_mlp, {"target_modules": "all-linear"}),
        (
            small_mlp,
            {
                **{"target_modules": LINEAR, "r": 2, "use_rslora": True},
                "rank_pattern": {"linear[12]": 3},
                "alpha_pattern": {"^linear3": 1, ".*1": 20},
            },
        ),
        (small_cnn, {"target_modules": ["conv", "linear", "0"], "r": 2}),
        (small_cnn, {"target_modules": ["conv"], "rank_pattern": {"block.conv": 3}}),
    ],
)
def test_their_adapters_load_here(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = randomized(get_peft_model(make(), LoraConfig(**options))).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(make(), tmp_path)
    x = IMAGES[make]
    assert not torch.allclose(ours(x), make()(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", [{"dilation": 2}, {"padding_mode": "circular", "padding": 1}])
def test_what_peft_would_compute_wrongly_is_told(option: dict[str, Any], tmp_path: Path) -> None:
    net = add_lora(nn.Sequential(nn.Conv2d(1, 2, 3, **option)), target_modules="0")
    with pytest.warns(UserWarning, match=f"0 has {next(iter(option))}=.*, which PEFT ignores"):
        save_adapter(net, tmp_path / "adapter")


def alphas(pattern: dict[str, Any], layers: list[str]) -> dict[str, float]:
    config = {"alpha_pattern": pattern, "lora_alpha": 1}
    found = layer_settings(config, dict.fromkeys(layers, 2))
    return {name: of.alpha for name, of in found.items()}


LAYERS = ["linear1", "linear2", "a.linear1", "a.b.conv_3", "a.layers.11.q_proj", "x-y.layers.2.k"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"linear1": 2, "a.linear1": 3},
        {"a.linear1": 3, "linear1": 2},
        {"^linear1": 2},
        {"^linear1|conv_.$": 2, ".*1": 5},
        {r"layers\.\d+\.q_proj": 2, "linear[12]": 3, "x-y.layers.2.k": 4},
        {r".*\.layers\.[0-9]+.(q_proj|k)": 2},
        {r"a\.(?:linear1|b.conv_3)": 2, r"\w+": 7},
        {r"[^a]+\d": 4},
        {"": 3, "conv": 9},
    ],
)
def test_alphas_are_read_as_in_peft(pattern: dict[str, Any]) -> None:
    expected = {name: pattern.get(get_pattern_key(pattern, name), 1) for name in LAYERS}
    assert alphas(pattern, LAYERS) == expected


@pytest.mark.parametrize(
    "key",
    [
        "((((.*)*)*)*)*x",
        ".*" * 100,
        "a{99999999999999}",
        "(" * 20_000,
        "(?i)linear1",
        "(a|a)" * 50,
        "a?" * 30 + "a" * 30,
        "(?=linear)",
        r"(.)\1",
        "x" * 201,
        ".*.*.*1",
        "(a)*",
        "[",
        "*",
        "\n",
    ],
)
def test_expressions_that_could_take_long_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="expected a layer's name or a simple expression"):
        alphas({key: 2}, LAYERS)


@pytest.mark.parametrize("key", ["(", ")", "(a))", "|)"])
def test_what_is_no_expression_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="alpha_pattern: expected regular expressions|simple exp"):
        alphas({key: 2}, LAYERS)


def test_many_keys_are_refused_and_a_large_networks_are_not() -> None:
    layers = [f"model.layers.{n}.self_attn.{side}_proj" for n in range(100) for side in "qkvo"]
    assert alphas(dict.fromkeys(layers, 2), layers) == dict.fromkeys(layers, 2)
    with pytest.raises(ValueError, match="100000 keys would take too long to match"):
        alphas({f"{n}": 2 for n in range(100_000)}, layers)
    with pytest.raises(ValueError, match="too long to match"):
        alphas({f".*.*{n}": 2 for n in range(100)}, layers)


@pytest.mark.parametrize("unit", [".*.*(a|b|c|d)x", "[^x]*.*z", ".*a", "linear1"])
def test_what_is_accepted_is_fast(unit: str) -> None:
    """As many keys as are just accepted, on names that make ``re`` go back as often as possible."""
    layers = [f"{'a.' * 30}a{n}" for n in range(50)]
    count = 1
    started = time.perf_counter()
    while True:
        try:
            started = time.perf_counter()
            alphas({f"{unit}{n}": 2 for n in range(count)}, layers)
        except ValueError:
            break
        assert time.perf_counter() - started < 3  # a second on an idle machine
        count *= 2
    assert time.perf_counter() - started < 1
