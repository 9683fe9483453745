"""Switched off, an adapted network is its base, whatever layers it has; and training moves none."""

import copy
from collections.abc import Callable
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
    merge_lora,
    remove_lora,
    save_adapter,
)


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


class Recurrent(nn.Module):
    """A recurrent network that classifies sequences of tokens."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.rnn = kind(8, 6, num_layers=2, batch_first=True, dropout=0.3, **options)
        self.norm = nn.BatchNorm1d(6 * (2 if self.rnn.bidirectional else 1))
        self.head = nn.Linear(self.norm.num_features, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.rnn(self.embed(x))[0][:, -1]))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32)


def tokens() -> torch.Tensor:
    return torch.randint(1, 20, (5, 7))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), images),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5), images),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=32, num_classes=5), images),
    "encoder": (lambda: Encoder(nhead=2, batch_first=True), tokens),
    "encoder_norm_first": (lambda: Encoder(nhead=4, batch_first=True, norm_first=True), tokens),
    "encoder_odd_heads": (lambda: Encoder(nhead=1, bias=False), tokens),
    "lstm": (lambda: Recurrent(nn.LSTM), tokens),
    "lstm_projected": (lambda: Recurrent(nn.LSTM, proj_size=0, bidirectional=True), tokens),
    "gru": (lambda: Recurrent(nn.GRU), tokens),
}
SLOW = {"vit_b_16"}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    net = make()
    *_, head = (module for module in net.modules() if isinstance(module, nn.Linear))
    nn.init.normal_(head.weight, std=0.1)  # torchvision's ViT begins with zeros
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        with torch.no_grad():
            for _ in range(5):
                net(inputs())  # for the statistics
    return net.eval(), inputs()


def outputs(net: nn.Module, x: torch.Tensor, grad: bool) -> torch.Tensor:
    with torch.set_grad_enabled(grad):
        return net(x).detach()


@pytest.mark.filterwarnings("ignore:PEFT has no adapter")
@pytest.mark.parametrize("target_modules", ["all", ".*"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETWORKS]
)
def test_switched_off_it_is_the_base(name: str, target_modules: str, tmp_path: Any) -> None:
    net, x = network(name)
    # torch's attention takes another kernel where none of its weights asks for a gradient.
    net.requires_grad_(False)
    base = {grad: outputs(net, x, grad) for grad in (False, True)}
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plain = copy.deepcopy(net)
    add_lora(net, rank=2, target_modules=target_modules, init_std=0.05)
    for mode in (True, False):
        net.train(mode)
        for grad in (False, True):
            with lora_disabled(net):
                assert torch.equal(outputs(net, x, grad), base[grad])

    net.train()
    optimizer = torch.optim.SGD(list(lora_parameters(net)), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        assert all(p.grad is not None for p in lora_parameters(net))
        optimizer.step()
    assert changed_tensors(state, base_state_dict(net)) == []
    adapted = outputs(net, x, grad=False)
    assert not torch.equal(adapted, base[False])

    for mode in (True, False):
        net.train(mode)
        assert torch.equal(outputs(net, x, grad=False), adapted)
        with lora_disabled(net):
            for grad in (False, True):
                assert torch.equal(outputs(net, x, grad), base[grad])
    twin = copy.deepcopy(net)
    close = {"rtol": 1e-4, "atol": 1e-5 * float(adapted.abs().max())}
    torch.testing.assert_close(outputs(merge_lora(twin), x, grad=False), adapted, **close)
    if target_modules == "all":
        loaded = load_adapter(plain, save_adapter(net, tmp_path))
        assert torch.equal(outputs(loaded, x, grad=False), adapted)
    assert torch.equal(outputs(remove_lora(net), x, grad=False), base[False])
    assert changed_tensors(state, net.state_dict()) == []
