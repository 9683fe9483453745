"""Adapters over a whole network: the weights they go on, and what is refused."""

import copy

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import (
    KINDS,
    add_lora,
    lora_disabled,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.lora.weight import lora_adapters

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


def test_adapters_stack_and_an_exception_leaves_them_as_they_were(tiny):
    base = tiny(X)
    first = lora_adapters(randomize(add_lora(tiny, target_modules="linear1")))
    one = tiny(X)
    second = [adapter for adapter in lora_adapters(add_lora(tiny)) if adapter not in first]
    trained = [parameter for parameter in tiny.parameters() if parameter.requires_grad]
    assert {*trained} == {p for adapter in second for p in adapter.parameters()}
    assert torch.equal(tiny(X), one)  # lora_B of the second starts at 0
    randomize(tiny)
    first[0].enabled = False
    without_the_first = tiny(X)
    with pytest.raises(KeyError), lora_disabled(tiny):
        assert torch.equal(tiny(X), base)
        raise KeyError
    assert torch.equal(tiny(X), without_the_first)
    with pytest.raises(ValueError, match="scale=nan: expected a finite number"):
        set_lora_scale(tiny, float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "^rank=0: "),
        ({"alpha": float("nan")}, "^alpha=nan: "),
        ({"init": "zeros"}, "^init=zeros: "),
        ({"dropout": 1}, "^dropout=1: "),
        ({"target_modules": "conv"}, "target_modules=conv: .* 0.linear1, 0.linear2"),
        ({"target_modules": ["linear1", "lin"]}, " lin, of: 0"),
        ({"target_modules": "*conv"}, r"=\*conv: "),
        ({"rank_pattern": {"near1": 2}}, "{near1: 2}: "),
        ({"dropout": 0.1, "target_modules": ["weight_ih_l0"]}, "dropout=0.1: "),
        ({"dropout": 0.1, "init": "dora"}, "dropout=0.1: "),
        ({"init": "dora"}, "=1.weight_ih_l0: DoRAParametrization takes no weight of LSTM"),
    ],
)
def test_add_lora_leaves_a_model_alone_that_it_refuses(arguments, message):
    net = nn.Sequential(TinyNet(), nn.LSTM(4, 3))
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=message):
        add_lora(net, **{"target_modules": ".*", **arguments})
    assert all(p.requires_grad for p in net.parameters())
    assert list(net.state_dict()) == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("init", KINDS)
def test_each_kind_starts_at_what_the_network_computes(tiny, init):
    before = randomize(add_lora(tiny))(X)
    torch.testing.assert_close(add_lora(tiny, rank=2, init=init)(X), before)


def test_add_lora_beside_somebody_elses_parametrization(tiny, tmp_path):
    nn.utils.parametrizations.weight_norm(tiny.linear2)
    plain = copy.deepcopy(tiny.eval())
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    with pytest.raises(ValueError, match="linear2: .*remove_parametrizations"):
        add_lora(tiny)
    add_lora(tiny, target_modules=["linear1"]).train()(X)
    adapted = randomize(tiny.eval())(X)
    assert changed_tensors(before, base_state_dict(tiny)) == []
    assert torch.equal(load_adapter(plain, save_adapter(tiny, tmp_path))(X), adapted)
    torch.testing.assert_close(merge_lora(tiny)(X), adapted)
    assert torch.equal(unmerge_lora(tiny)(X), adapted)
    assert changed_tensors(before, remove_lora(tiny).state_dict()) == []


def test_a_weight_that_two_layers_share_is_refused():
    net = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 6), nn.Embedding(6, 9))
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match="target_modules: 0 and 2 share one weight"):
        add_lora(net)
    assert all(parameter.requires_grad for parameter in net.parameters())
    add_lora(net, target_modules=["1"])


def test_add_lora_refuses_a_wrapped_network_before_training(tiny, tmp_path):
    """The names of its layers would stand in the adapter, which then fits no other network."""
    with pytest.raises(ValueError, match="DataParallel: "):
        add_lora(nn.DataParallel(tiny))
    with pytest.raises(ValueError, match="DataParallel: "):
        save_adapter(nn.DataParallel(add_lora(tiny)), tmp_path)


@pytest.mark.parametrize("function", [merge_lora, remove_lora])
def test_merge_lora_and_remove_lora_leave_a_network_that_trains_as_any_other(function):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval()
    add_lora(net, target_modules=["0"])
    before = copy.deepcopy(base_state_dict(net))
    assert torch.equal(net.train()(X), net(X))
    assert changed_tensors(before, base_state_dict(net)) == []
    function(net).train()
    assert not torch.equal(net(X), net(X))
    assert "1.running_mean" in changed_tensors(before, base_state_dict(net))


def stacked():
    torch.manual_seed(0)
    net = TinyNet()
    for rank, layers in enumerate(["all", ["linear1"], ["linear2"]], start=1):
        add_lora(net, rank=rank, alpha=2, target_modules=layers)
    return randomize(net)


STEPS = {
    "merge": merge_lora,
    "unmerge": unmerge_lora,
    "off": lambda net: set_lora_enabled(net, False),
    "on": lambda net: set_lora_enabled(net, True),
    "half": lambda net: set_lora_scale(net, 0.5),
    "remove": remove_lora,
}


@settings(max_examples=40)
@given(steps=st.lists(st.sampled_from([*STEPS, "copy"]), max_size=8), training=st.booleans())
def test_adapters_hold_whatever_is_done_in_whatever_order(steps, training):
    """The network computes the adapters that are there, at their scales; its base never moves."""
    net = stacked().train(training)
    plain, before = stacked(), base_state_dict(stacked())  # plain is never merged
    is_adapted, is_merged = True, False
    for step in steps:
        if step == "copy":
            net = copy.deepcopy(net)
            continue
        if step == "unmerge":
            refused = not is_merged
        else:
            refused = not is_adapted or (is_merged and step != "remove")
        if refused:
            with pytest.raises(ValueError, match="merged|no layer of the model"):
                STEPS[step](net)
            continue
        STEPS[step](net)
        if step not in ("merge", "unmerge"):
            STEPS[step](plain)
        if step == "remove":
            is_adapted = False
        is_merged = step == "merge"
        torch.testing.assert_close(net(X), plain(X))
        if not is_merged:
            assert changed_tensors(before, base_state_dict(net)) == []
    if is_merged:
        unmerge_lora(net)
    assert changed_tensors(plain.state_dict(), net.state_dict()) == []
    assert torch.equal(net(X), plain(X))


def test_a_new_adapter_stands_on_the_merged_network():
    """Which is then final."""
    net = merge_lora(stacked())
    assert [type(module) for module in net.modules()] == [type(m) for m in TinyNet().modules()]
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    add_lora(net)
    assert changed_tensors(state, base_state_dict(net)) == []
    with pytest.raises(ValueError, match="merged"):
        unmerge_lora(net)
