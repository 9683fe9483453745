import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import (
    LayerSettings,
    add_lora,
    attach,
    load_adapter,
    lora_layers,
    read_factors,
    save_adapter,
)


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


class Tokens(nn.Module):
    """An embedding, an attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(x)
        return self.linear(self.attention(hidden, hidden, hidden)[0])


class Signals(nn.Module):
    """Convolutions in one and in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, 3, stride=2)
        self.conv3 = nn.Conv3d(1, 3, (1, 2, 2), padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.conv1(x)[:, None, :, :, None])


class Foreign(nn.Module):
    """Weights for which PEFT has no adapter, or none of this form."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, groups=2)
        self.dilated = nn.Conv2d(4, 4, 1, dilation=2)
        self.circular = nn.Conv2d(4, 4, 1, padding_mode="circular")
        self.transposed = nn.ConvTranspose2d(4, 2, 3)
        self.rnn = nn.GRU(6, 5)
        self.attention = nn.MultiheadAttention(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.circular(self.dilated(self.grouped(x)))
        hidden = self.rnn(self.transposed(hidden).flatten(1, 2))[0]
        return self.attention(hidden, hidden, hidden)[0]


def small_mlp() -> nn.Module:
    return MLP(in_features=12, hidden_sizes=[9, 7], num_classes=4)


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


SEEDED = torch.Generator().manual_seed(2)
INPUTS = {
    small_mlp: torch.randn(6, 1, 3, 4, generator=SEEDED),
    ConvNet: torch.randn(6, 1, 8, 7, generator=SEEDED),
    Tokens: torch.arange(10).view(2, 5) % 9,
    Signals: torch.randn(3, 2, 11, generator=SEEDED),
    Foreign: torch.randn(2, 2, 6, 6, generator=SEEDED),
}


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return net.eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (small_mlp, {}),
        (small_mlp, {"rank": 4, "alpha": 3.0, "use_rslora": True, "dropout": 0.5}),
        (small_mlp, {"target_modules": "linear[13]", "init": "kaiming"}),
        (small_mlp, {"rank_pattern": {"linear2": 3}, "alpha_pattern": {"linear1": 0.5}}),
        (small_mlp, {"init": "pissa", "rank": 3, "use_rslora": True}),
        (ConvNet, {"target_modules": ".*(conv|linear|0)", "rank": 2}),
        (ConvNet, {"target_modules": "conv"}),  # and not block.conv
        (ConvNet, {"target_modules": ".*conv", "rank_pattern": {"^conv": 3}}),
        (ConvNet, {"target_modules": ".*conv", "init": "pissa", "rank": 3, "alpha": 2.0}),
        (Tokens, {"target_modules": ["embed"], "rank": 2, "init": "pissa"}),
        (Tokens, {"target_modules": ["embed", "linear"], "rank_pattern": {"linear": 3}}),
        (Signals, {"target_modules": ".*", "rank": 2, "rank_pattern": {"conv3": 1}}),
    ],
)
def test_ours_load_here_and_in_peft(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = INPUTS[kind]
    ours = randomized(add_lora(make(kind), **{"target_modules": "linear[0-9]", **options}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(ours, tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    again = load_adapter(make(kind), tmp_path)
    torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
    theirs = PeftModel.from_pretrained(make(kind), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)
    adapted = {name for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {f"base_model.model.{name}" for name, _ in lora_layers(ours)}
    layers = dict(lora_layers(again))
    for layer, (lora_A, lora_B, scaling) in read_factors(tmp_path).items():
        update = scaling * lora_B.flatten(1) @ lora_A.flatten(1)
        expected = layers[layer].weight - layers[layer].parametrizations.weight.original
        torch.testing.assert_close(update, expected.flatten(1), rtol=1e-4, atol=1e-5)


LINEAR = ["linear1", "linear2", "linear3"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (small_mlp, {"target_modules": LINEAR, "r": 4, "lora_alpha": 5, "use_rslora": True}),
        (small_mlp, {"target_modules": ["linear2"], "lora_dropout": 0.3}),
        (small_mlp, {"target_modules": r"linear\d", "exclude_modules": ["linear1"]}),
        (small_mlp, {"target_modules": "all-linear"}),
        (
            small_mlp,
            {
                **{"target_modules": LINEAR, "r": 2, "use_rslora": True},
                "rank_pattern": {"linear[12]": 3},
                "alpha_pattern": {"^linear3": 1, "linear1": 20},
            },
        ),
        (ConvNet, {"target_modules": ["conv", "linear", "0"], "r": 2}),
        (ConvNet, {"target_modules": ["conv"], "alpha_pattern": {"block.conv": 3, "conv": 2}}),
        (Tokens, {"target_modules": ["embed", "linear"], "alpha_pattern": {"embed": 7}}),
        (Signals, {"target_modules": "conv.", "r": 2}),
    ],
)
def test_theirs_load_here(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = INPUTS[kind]
    theirs = randomized(get_peft_model(make(kind), LoraConfig(**options)))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(make(kind), tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "target", ["grouped", "dilated", "circular", "transposed", "rnn", "in_proj_weight", "out_proj"]
)
def test_what_peft_cannot_adapt_is_told_and_loads_here(target: str, tmp_path: Path) -> None:
    x = INPUTS[Foreign]
    ours = randomized(add_lora(make(Foreign), rank=2, target_modules=[target]))
    with pytest.warns(UserWarning, match=f"PEFT has no adapter of this form for .*{target}"):
        save_adapter(ours, tmp_path)
    assert not torch.allclose(ours(x), make(Foreign)(x), atol=1e-3)
    assert torch.equal(load_adapter(make(Foreign), tmp_path)(x), ours(x))


def test_pefts_attention_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21 adds the update of ``out_proj`` twice: what such an adapter means is not clear."""
    get_peft_model(make(Tokens), LoraConfig(target_modules=["attention"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unexpected tensors of attention.* no such layer"):
        load_adapter(make(Tokens), tmp_path)


def test_one_kind_of_scaling_is_written(tmp_path: Path) -> None:
    settings = {"embed": LayerSettings(4, 2.0, use_rslora=True), "linear": LayerSettings(2, 3.0)}
    ours = randomized(attach(make(Tokens), settings))
    save_adapter(ours, tmp_path)
    x = INPUTS[Tokens]
    torch.testing.assert_close(load_adapter(make(Tokens), tmp_path)(x), ours(x))
