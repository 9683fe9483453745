import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.lora import (
    WEIGHTS_NAME,
    LayerSettings,
    add_lora,
    attach,
    has_lora,
    load_adapter,
    save_adapter,
)


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


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return net.eval()


INPUTS = {
    Tokens: torch.arange(10).view(2, 5) % 9,
    Signals: torch.randn(3, 2, 11, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize(
    ("kind", "target_modules", "options"),
    [
        (Tokens, ["embed"], {"alpha": 3.0}),
        (Tokens, ["embed"], {"init": "pissa"}),
        (Tokens, ["embed", "linear"], {"use_rslora": True, "rank_pattern": {"linear": 3}}),
        (Signals, ".*", {}),
        (Signals, ["conv1", "conv3"], {"rank_pattern": {"conv3": 1}}),
    ],
)
def test_ours_load_here_and_in_peft(
    kind: Any, target_modules: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    x = INPUTS[kind]
    ours = randomized(
        add_lora(make(kind), **{"rank": 2, "target_modules": target_modules, **options})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(ours, tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    again = load_adapter(make(kind), tmp_path)
    torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
    theirs = PeftModel.from_pretrained(make(kind), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Tokens, {"target_modules": ["embed"], "lora_alpha": 3}),
        (Tokens, {"target_modules": ["embed", "linear"], "alpha_pattern": {"embed": 7}}),
        (Signals, {"target_modules": "conv."}),
    ],
)
def test_theirs_load_here(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = INPUTS[kind]
    theirs = randomized(get_peft_model(make(kind), LoraConfig(**{"r": 2, **options})))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(make(kind), tmp_path)
    assert not torch.allclose(ours(x), make(kind)(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


class Foreign(nn.Module):
    """Weights for which PEFT has no adapter, or none of this form."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, groups=2)
        self.transposed = nn.ConvTranspose2d(4, 2, 3)
        self.rnn = nn.GRU(6, 5)
        self.attention = nn.MultiheadAttention(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.rnn(self.transposed(self.grouped(x)).flatten(1, 2))[0]
        return self.attention(hidden, hidden, hidden)[0]


@pytest.mark.parametrize(
    "target_modules",
    [["grouped"], ["transposed"], ["rnn"], ["in_proj_weight"], ["out_proj"], ["weight_hh_l0"]],
)
def test_what_peft_cannot_adapt_is_told_and_loads_here(
    target_modules: list[str], tmp_path: Path
) -> None:
    x = torch.randn(2, 2, 6, 6)
    ours = randomized(add_lora(make(Foreign), rank=2, target_modules=target_modules))
    with pytest.warns(UserWarning, match=f"PEFT has no adapter for .*{target_modules[0]}"):
        save_adapter(ours, tmp_path)
    assert not torch.allclose(ours(x), make(Foreign)(x), atol=1e-3)
    assert torch.equal(load_adapter(make(Foreign), tmp_path)(x), ours(x))


def test_pefts_attention_is_refused(tmp_path: Path) -> None:
    """PEFT 0.21 adds the update of ``out_proj`` twice: what such an adapter means is not clear."""
    get_peft_model(make(Tokens), LoraConfig(target_modules=["attention"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected tensor .*attention.* no such layer that can"):
        load_adapter(make(Tokens), tmp_path)


def test_one_kind_of_scaling_is_written(tmp_path: Path) -> None:
    settings = {"embed": LayerSettings(4, 2.0, use_rslora=True), "linear": LayerSettings(2, 3.0)}
    ours = randomized(attach(make(Tokens), settings))
    save_adapter(ours, tmp_path)
    x = INPUTS[Tokens]
    torch.testing.assert_close(load_adapter(make(Tokens), tmp_path)(x), ours(x))


@pytest.mark.parametrize("damage", ["missing", "shape", "twice"])
def test_damaged_embeddings_are_refused(damage: str, tmp_path: Path) -> None:
    save_adapter(add_lora(make(Tokens), rank=2, target_modules=["embed"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    key = "base_model.model.embed.lora_embedding_A"
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        key: (2, 9),
        key.replace("_A", "_B"): (8, 2),
    }
    if damage == "missing":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = tensors[key].t().contiguous()
    else:
        tensors["base_model.model.embed.lora_A.weight"] = copy.deepcopy(tensors[key])
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    net = make(Tokens)
    with pytest.raises(ValueError, match=r"is missing|has shape \(9, 2\), expected|unexpected ten"):
        load_adapter(net, tmp_path)
    assert not has_lora(net)
