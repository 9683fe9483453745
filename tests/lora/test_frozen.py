"""The base: in eval mode while it carries an adapter, and known by its SHA-256."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import randomize
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    fingerprint,
    lora_disabled,
    merge_lora,
    remove_lora,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.dropout(self.body(x), 0.5, self.training))


X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def state_of(net):
    return {key: tensor.clone() for key, tensor in base_state_dict(net).items()}


def train(net, steps=3):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        net.train()  # as a loop does at every epoch
        optimizer.zero_grad()
        net(X).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("mode", [True, False])
def test_train_mode_reaches_the_adapters_alone(net, mode):
    base = net(X)
    add_lora(net, dropout=0.5).train(mode)
    for _ in range(2):
        with lora_disabled(net):
            assert torch.equal(net(X), base)
        assert not net.body.training
    randomize(net)
    assert torch.equal(net(X), net(X)) != mode  # the adapters' dropout


def test_statistics_stay(net):
    """Those of spectral normalisation too, which in train mode goes on with its iteration."""
    nn.utils.parametrizations.spectral_norm(net.head)
    before = state_of(net.eval())
    add_lora(net, target_modules=["0"])
    train(net)
    net.train()
    net.body(X)  # a part of the network, which the network's own hook never sees
    assert changed_tensors(before, base_state_dict(net)) == []


@pytest.mark.parametrize("function", [merge_lora, remove_lora])
@pytest.mark.parametrize("copied", [False, True])
def test_afterwards_the_network_trains_as_any_other(net, function, copied):
    add_lora(add_lora(net))
    before = state_of(net)
    if copied:
        net, original = copy.deepcopy(net), net
        remove_lora(original)
        train(net)
        assert changed_tensors(before, base_state_dict(net)) == []  # the copy holds its own
    function(net).train()
    assert not torch.equal(net(X), net(X))
    assert "body.1.running_mean" in changed_tensors(before, base_state_dict(net))


def test_a_lazy_layer_of_the_base_is_frozen_before_it_has_numbers():
    net = add_lora(nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(3)))
    net(X)
    assert not net[1].weight.requires_grad


def test_fingerprint_sees_every_difference():
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        (state, []),
        ({**state, "a": torch.tensor([-0.0, 1.0])}, ["a"]),
        ({**state, "a": state["a"].flip(0)}, ["a"]),
        ({**state, "b": torch.ones(3, 2)}, ["b"]),
        ({**state, "a": state["a"].double()}, ["a"]),
        ({"a": state["a"], "c": state["b"]}, ["b", "c"]),
        ({"a": state["a"]}, ["b"]),
    ]
    assert len({fingerprint(variant) for variant, _ in variants}) == len(variants)
    for variant, changed in variants:
        assert changed_tensors(state, variant) == changed
    reversed_copy = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert fingerprint(reversed_copy) == fingerprint(state)
    # The name of a base on disk, in adapters and in results: the same for ever.
    assert fingerprint({"a": torch.arange(3)})[:12] == "28eb18b5aab3"
