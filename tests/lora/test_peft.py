import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist.lora import (
    add_lora,
    load_adapter,
    lora_weights,
    save_adapter,
)

peft = pytest.importorskip("peft", reason="the extra peft is not installed")
LoraConfig, PeftModel, get_peft_model = peft.LoraConfig, peft.PeftModel, peft.get_peft_model


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


def tokens() -> nn.Module:
    layers = {"embed": nn.Embedding(9, 8, padding_idx=0), "linear": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(layers))


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3, stride=2))


SEEDED = torch.Generator().manual_seed(2)
INPUTS: dict[Any, torch.Tensor] = {
    TinyNet: torch.randn(5, 6, generator=SEEDED),
    ConvNet: torch.randn(6, 1, 8, 7, generator=SEEDED),
    tokens: torch.arange(10).view(2, 5) % 9,
    signals: torch.randn(3, 2, 11, generator=SEEDED),
}


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return net.eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TinyNet, {"rank": 4, "alpha": 3.0, "use_rslora": True, "dropout": 0.5}),
        (TinyNet, {"target_modules": "linear2", "init": "kaiming"}),
        (TinyNet, {"rank_pattern": {"linear2": 3}, "alpha_pattern": {"linear1": 0.5}}),
        (TinyNet, {"init": "pissa", "rank": 3, "use_rslora": True}),
        (ConvNet, {"rank": 2}),
        (ConvNet, {"target_modules": "conv"}),  # and not block.conv
        (ConvNet, {"target_modules": ".*conv", "rank_pattern": {"^conv": 3}}),
        (ConvNet, {"target_modules": ".*conv", "init": "pissa", "rank": 3, "alpha": 2.0}),
        (tokens, {"target_modules": ["embed"], "rank": 2, "init": "pissa"}),
        (tokens, {"rank_pattern": {"linear": 3}}),
        (signals, {"rank": 2}),
    ],
)
def test_ours_load_here_and_in_peft(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = INPUTS[kind]
    ours = randomized(add_lora(make(kind), **{"target_modules": ".*", **options}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(ours, tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    again = load_adapter(make(kind), tmp_path)
    torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
    theirs = PeftModel.from_pretrained(make(kind), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)
    adapted = {name for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {f"base_model.model.{name}" for name in lora_weights(ours)}


BOTH = ["linear1", "linear2"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TinyNet, {"target_modules": BOTH, "r": 4, "lora_alpha": 5, "use_rslora": True}),
        (TinyNet, {"target_modules": r"linear\d", "exclude_modules": ["linear1"]}),
        (TinyNet, {"target_modules": "all-linear", "lora_dropout": 0.3}),
        (TinyNet, {"target_modules": BOTH, "rank_pattern": {"linear[23]": 3}, "use_rslora": True}),
        (TinyNet, {"target_modules": BOTH, "alpha_pattern": {"^linear2": 1, "linear1": 20}}),
        (ConvNet, {"target_modules": ["conv", "linear", "0"], "r": 2}),
        (ConvNet, {"target_modules": ["conv"], "alpha_pattern": {"block.conv": 3, "conv": 2}}),
        (tokens, {"target_modules": ["embed", "linear"], "alpha_pattern": {"embed": 7}}),
        (signals, {"target_modules": "0", "r": 2}),
    ],
)
def test_theirs_load_here(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = INPUTS[kind]
    theirs = randomized(get_peft_model(make(kind), LoraConfig(**options)))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(make(kind), tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    save_adapter(ours, tmp_path / "again")
    again = PeftModel.from_pretrained(make(kind), str(tmp_path / "again")).eval()
    torch.testing.assert_close(again(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 1, dilation=2),
        nn.Conv2d(4, 4, 1, padding_mode="circular"),
        nn.GRU(6, 5),
        nn.MultiheadAttention(5, 1),
        nn.Sequential(*[nn.Linear(6, 6)] * 2),  # one layer under two names
    ],
    ids=str,
)
def test_what_peft_cannot_adapt_is_named(layer: nn.Module, tmp_path: Path) -> None:
    net = nn.Sequential(layer)
    add_lora(net, target_modules=".*")
    with pytest.warns(UserWarning, match="PEFT has no adapter of this form for 0.*: use the saved"):
        save_adapter(net, tmp_path)


def test_pefts_attention_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21 adds the update of ``out_proj`` twice: what such an adapter means is not clear."""
    net = nn.Sequential(nn.MultiheadAttention(8, 2))
    get_peft_model(net, LoraConfig(target_modules=["0"])).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"unexpected tensors of 0\..* no such layer that can be"):
        load_adapter(nn.Sequential(nn.MultiheadAttention(8, 2)), tmp_path)
