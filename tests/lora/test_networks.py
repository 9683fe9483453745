"""Switched off, an adapted network is its base, whatever layers it has; and training moves none."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    load_adapter,
    lora_disabled,
    lora_parameters,
    lora_weights,
    merge_lora,
    remove_lora,
    save_adapter,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.lora.weight import adaptable_weights


class Encoder(nn.Module):
    """A transformer that classifies sequences of tokens."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, dim_feedforward=24, dropout=0.3, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class First(nn.Module):
    """What a recurrent layer gives without its state, or attention to something of other sizes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_attention = isinstance(self.layer, nn.MultiheadAttention)
        return self.layer(*((x, x[..., :5], x[..., :5]) if is_attention else (x,)))[0]


def recurrent(kind: type[nn.RNNBase], **options: Any) -> nn.Module:
    """A recurrent network on sequences of tokens."""
    embed = nn.Embedding(20, 8, padding_idx=0)
    rnn = First(kind(8, 6, num_layers=2, batch_first=True, dropout=0.3, **options))
    return nn.Sequential(embed, rnn, nn.BatchNorm1d(7), nn.LazyLinear(4))


class Shifted(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


TOKENS = torch.randint(1, 20, (5, 7), generator=torch.Generator().manual_seed(0))
#: Networks, and the shape of their images where they take no tokens.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "mobilenet_v2": (
        lambda: torchvision.models.MobileNetV2(5, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2]]),
        (2, 3, 32, 32),
    ),
    "encoder": (lambda: Encoder(nhead=2, batch_first=True), None),
    "encoder_odd_heads": (lambda: Encoder(nhead=1, bias=False), None),
    "lstm": (lambda: recurrent(nn.LSTM, bidirectional=True), None),
    "lstm_projected": (lambda: recurrent(nn.LSTM, proj_size=3), None),
    "gru": (lambda: recurrent(nn.GRU), None),
    "gru_cell": (lambda: nn.GRUCell(4, 6), (5, 4)),
    "attention_to_others": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)),
        (2, 3, 8),
    ),
    "embedding_bag": (lambda: nn.EmbeddingBag(20, 4), None),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, padding=1), (2, 3, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), (2, 2, 4, 4, 4)),
    "own_forward": (lambda: Shifted(6, 2), (4, 6)),
    "one_layer_under_two_names": (lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2), (4, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
}
#: Of weights that ``all`` does not stand for.
BY_NAME_ALONE = {"gru_cell", "embedding_bag", "conv1d", "conv3d", "grouped", "transposed"}


def outputs(net: nn.Module, x: torch.Tensor, grad: bool = False) -> torch.Tensor:
    with torch.set_grad_enabled(grad):
        return net(x).detach()


@pytest.mark.filterwarnings("ignore:PEFT has no adapter")
@pytest.mark.parametrize(
    ("name", "target_modules", "kind"),
    [
        *((name, "all", "gaussian") for name in NETWORKS if name not in BY_NAME_ALONE),
        *((name, ".*", kind) for name in NETWORKS for kind in ("gaussian", "pissa")),
    ],
)
def test_switched_off_it_is_the_base(
    name: str, target_modules: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net, x = make(), TOKENS if shape is None else torch.randn(shape)
    for _ in range(5):
        outputs(net, x)  # for the statistics
    # torch's attention takes another kernel where none of its weights asks for a gradient.
    net.eval().requires_grad_(False)
    base = {grad: outputs(net, x, grad) for grad in (False, True)}
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plain, dense = copy.deepcopy(net), copy.deepcopy(net)
    std = 0.05 if kind == "gaussian" else None
    add_lora(net, target_modules=target_modules, init=kind, init_std=std)
    torch.testing.assert_close(outputs(net, x), base[False], rtol=1e-4, atol=1e-6)

    optimizer = torch.optim.SGD(list(lora_parameters(net)), lr=0.01)
    for _ in range(3):
        for mode in (False, True):
            net.train(mode)
            with lora_disabled(net):
                for grad in (False, True):
                    assert torch.equal(outputs(net, x, grad), base[grad])
        optimizer.zero_grad()
        net(x).square().mean().backward()
        assert all(p.grad is not None for p in lora_parameters(net))
        optimizer.step()
    assert changed_tensors(state, base_state_dict(net)) == []
    adapted = outputs(net, x)
    assert not torch.equal(adapted, base[False])
    close = {"rtol": 1e-4, "atol": 1e-5 * float(adapted.abs().max())}
    for name, weight in lora_weights(net).items():
        effective = getattr(weight.module, weight.tensor).detach()
        adaptable_weights(dense)[name].base.data = effective
    torch.testing.assert_close(outputs(dense, x), adapted, **close)
    for scale in (1, 0.5):
        set_lora_scale(net, scale)
        merged = merge_lora(copy.deepcopy(net))
        torch.testing.assert_close(outputs(merged, x), outputs(net, x), **close)
        assert merged.state_dict().keys() == state.keys()
        assert changed_tensors(net.state_dict(), unmerge_lora(merged).state_dict()) == []
        assert torch.equal(outputs(merged, x), outputs(net, x))
    set_lora_scale(net, 0)
    assert torch.equal(outputs(net, x), base[False])
    loaded = load_adapter(plain, save_adapter(net, tmp_path))
    torch.testing.assert_close(outputs(loaded, x), adapted, **close)
    assert torch.equal(outputs(remove_lora(net), x), base[False])
    assert changed_tensors(state, net.state_dict()) == []
