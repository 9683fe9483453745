"""The base: what is trained, merged, undone and removed on top of it leaves it to the last bit."""

import copy

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mnist.lora.base_state import base_state_dict, changed_tensors, fingerprint
from lora_mnist.lora.model import (
    add_lora,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    set_lora_scale,
    unmerge_lora,
)

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("function", [merge_lora, remove_lora])
def test_afterwards_the_network_trains_as_any_other(function):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval()
    add_lora(net, target_modules=["0"])
    before = copy.deepcopy(base_state_dict(net))
    assert torch.equal(net.train()(X), net(X))
    assert changed_tensors(before, base_state_dict(net)) == []
    function(net).train()
    assert not torch.equal(net(X), net(X))
    assert "1.running_mean" in changed_tensors(before, base_state_dict(net))


def test_fingerprint_sees_every_difference():
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        (state, []),
        ({**state, "a": torch.tensor([-0.0, 1.0])}, ["a"]),
        ({**state, "b": torch.ones(3, 2)}, ["b"]),
        ({"a": state["a"], "c": state["b"]}, ["b", "c"]),
    ]
    assert len({fingerprint(variant) for variant, _ in variants}) == len(variants)
    for variant, changed in variants:
        assert changed_tensors(state, variant) == changed
    reversed_copy = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert fingerprint(reversed_copy) == fingerprint(state)
    # The name of a base on disk, in adapters and in results: the same for ever.
    assert fingerprint({"a": torch.arange(3)})[:12] == "28eb18b5aab3"


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
def test_whatever_is_done_in_whatever_order(steps, training):
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
