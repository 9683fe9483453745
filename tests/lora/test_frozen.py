import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    freeze_base,
    load_adapter,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    save_adapter,
)
from lora_mnist.lora.frozen import moved_tensors


class Net(nn.Module):
    """Running statistics, dropout as a layer, and dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.body(x), 0.5, self.training))


X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in base_state_dict(net).items()}


def train(net: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        net.train()  # as a loop does at every epoch
        optimizer.zero_grad()
        net(X).square().sum().backward()
        optimizer.step()


def test_train_mode_reaches_the_adapters_alone(net: nn.Module) -> None:
    base = net(X)
    add_lora(net, dropout=0.5).train()
    with lora_disabled(net):
        assert torch.equal(net(X), base)
    for parameter in lora_parameters(net):
        nn.init.normal_(parameter)
    assert not torch.equal(net(X), net(X))  # the adapters' dropout
    net.eval()
    assert torch.equal(net(X), net(X))


def test_statistics_stay(net: nn.Module) -> None:
    before = state_of(net)
    add_lora(net)
    train(net)
    net.train()
    net.body(X)  # a part of the network, which the network's own hook never sees
    assert changed_tensors(before, base_state_dict(net)) == []
    assert moved_tensors(net) == []


def test_the_bases_dropout_is_off_unless_asked_for(net: nn.Module) -> None:
    before = state_of(net)
    add_lora(net, base_dropout=True).train()
    assert not torch.equal(net(X), net(X))
    net.body(X)
    assert changed_tensors(before, base_state_dict(net)) == []
    freeze_base(net)
    net.train()
    assert torch.equal(net(X), net(X))
    add_lora(net).train()
    assert torch.equal(net(X), net(X))
    add_lora(net, base_dropout=True).train()
    assert not torch.equal(net(X), net(X))


@pytest.mark.parametrize("function", [merge_lora, remove_lora])
def test_afterwards_the_network_trains_as_any_other(net: nn.Module, function: object) -> None:
    function(add_lora(add_lora(net, base_dropout=True), base_dropout=True))
    assert not any(m._forward_pre_hooks for m in net.modules())
    before = state_of(net)
    net.train()
    assert not torch.equal(net(X), net(X))
    assert changed_tensors(before, base_state_dict(net)) == [
        f"body.1.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")
    ]


def test_a_copy_is_held_by_itself(net: nn.Module) -> None:
    twin = copy.deepcopy(add_lora(net))
    remove_lora(net)
    before = state_of(twin)
    train(twin)
    assert changed_tensors(before, base_state_dict(twin)) == []
    remove_lora(twin)
    assert not any(m._forward_pre_hooks for m in twin.modules())


def test_a_part_of_a_network(net: nn.Module, tmp_path: Path) -> None:
    """The adapter is on the body; the head is nobody's business until it is saved as a whole."""
    add_lora(net.body)
    train(net)
    assert moved_tensors(net) == []
    with torch.no_grad():
        net.body[1].bias += 1
    assert moved_tensors(net) == ["body.1.bias"]
    with pytest.raises(ValueError, match=r"the base changed under its adapter: body\.1\.bias; exp"):
        save_adapter(net, tmp_path)


def test_an_adapter_of_a_moved_base_is_not_saved(net: nn.Module, tmp_path: Path) -> None:
    add_lora(net, target_modules=["0"])
    net.head.requires_grad_(True)  # by hand
    train(net)
    with pytest.raises(ValueError, match=r"under its adapter: head\.weight, head\.bias; expected"):
        save_adapter(net, tmp_path)
    assert not list(tmp_path.iterdir())
    freeze_base(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"body.0.parametrizations.weight.0.lora_{side}" for side in "AB"
    }
    plain = Net()
    plain.load_state_dict(base_state_dict(net))
    net.eval()
    assert torch.equal(load_adapter(plain.eval(), save_adapter(net, tmp_path))(X), net(X))


def test_a_second_adapter_keeps_the_memory_of_the_base(net: nn.Module) -> None:
    add_lora(net)
    with torch.no_grad():
        net.head.bias += 1
    add_lora(net)
    assert moved_tensors(net) == ["head.bias"]


def test_somebody_elses_parametrization_does_not_move_either() -> None:
    """In train mode, spectral normalisation goes on with its power iteration."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 3))
    before = state_of(net)
    add_lora(net)
    train(net)
    assert changed_tensors(before, base_state_dict(net)) == []
