"""Merging, undoing it, removing: by name or all at once, the base as it was to the last bit."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_mnist.lora import (
    WEIGHTS_NAME,
    add_lora,
    base_state_dict,
    changed_tensors,
    fingerprint,
    freeze_base,
    lora_disabled,
    lora_names,
    lora_summary,
    merge_lora,
    remove_lora,
    save_adapter,
    set_lora_enabled,
    set_lora_scale,
    unmerge_lora,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
NAMES = ["first", "second", "third"]


def stacked() -> nn.Module:
    """Three adapters of several ranks, each on other layers."""
    torch.manual_seed(0)
    net = TinyNet()
    for rank, name in enumerate(NAMES, start=1):
        layers = {"first": "all", "second": ["linear1"], "third": ["linear2"]}[name]
        add_lora(net, rank=rank, alpha=2, target_modules=layers, name=name)
    return randomize(net)


STEPS: dict[str, Callable[[nn.Module, str | None], Any]] = {
    "merge": merge_lora,
    "unmerge": unmerge_lora,
    "off": lambda net, name: set_lora_enabled(net, False, name),
    "on": lambda net, name: set_lora_enabled(net, True, name),
    "half": lambda net, name: set_lora_scale(net, 0.5, name),
    "remove": remove_lora,
}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([*STEPS, "copy"]), st.sampled_from([*NAMES, None])), max_size=8
    ),
    training=st.booleans(),
)
def test_whatever_is_done_in_whatever_order(
    steps: list[tuple[str, str | None]], training: bool
) -> None:
    """The network computes the adapters that are there, at their scales; its base never moves."""
    net = stacked().train(training)
    # The same without any merging: what is on, and how much.
    plain, before = stacked(), TinyNet()
    before.load_state_dict(base_state_dict(net))
    there, merged = list(NAMES), set[str]()
    for step, name in steps:
        named = there if name is None else [name]
        is_merged = bool(merged & set(named))
        if step == "copy":
            net = copy.deepcopy(net)
            continue
        refused = not set(named) & set(there)
        refused |= step == "unmerge" and not is_merged
        refused |= step in ("off", "on", "half") and is_merged
        if refused:
            with pytest.raises(ValueError, match="merged|no layer of the model|expected one of"):
                STEPS[step](net, name)
            continue
        STEPS[step](net, name)
        if step == "merge":
            merged |= set(named)
        else:
            merged -= set(named) if step in ("unmerge", "remove") else set()
            if step != "unmerge":
                STEPS[step](plain, name)
        if step == "remove":
            there = [other for other in there if other not in named]
        torch.testing.assert_close(net(X), plain(X))
        assert net.training == training
        assert {row.name for row in lora_summary(net).rows if row.state == "merged"} == merged
        assert lora_summary(net).base_sha256 == fingerprint(before.state_dict())
        assert set(lora_names(net)) == set(there)
        if merged != set(there):
            assert changed_tensors(before.state_dict(), base_state_dict(net)) == []
    if merged:
        unmerge_lora(net)
    assert changed_tensors(plain.state_dict(), net.state_dict()) == []
    assert torch.equal(net(X), plain(X))


def test_a_merged_network_is_a_plain_one() -> None:
    net = merge_lora(stacked())
    assert [type(module) for module in net.modules()] == [type(m) for m in TinyNet().modules()]
    assert not any(parameter.requires_grad for parameter in net.parameters())
    exported = torch.export.export(net, (X,))
    assert exported.state_dict.keys() == TinyNet().state_dict().keys()
    # A new adapter stands on the merged network, which is then final.
    sha256 = fingerprint(net.state_dict())
    add_lora(net, name="first")
    assert lora_names(net) == ["first"]
    assert lora_summary(net).base_sha256 == sha256
    with pytest.raises(ValueError, match="no adapter of the model is merged"):
        unmerge_lora(net)


def test_a_merged_network_is_pickled_with_its_base() -> None:
    net = stacked()
    state = net.state_dict()
    merge_lora(net)
    twin = pickle.loads(pickle.dumps(net))
    assert changed_tensors(state, unmerge_lora(twin).state_dict()) == []
    del net.lora_merged
    assert b"lora_mnist" not in pickle.dumps(net)


def test_what_is_not_merged_is_as_it_was(tmp_path: Path) -> None:
    net = stacked()
    before = save_adapter(net, tmp_path / "before", "third") / WEIGHTS_NAME
    merge_lora(net, "first")
    merge_lora(net, "second")
    assert not hasattr(net.linear1, "parametrizations")
    after = save_adapter(net, tmp_path / "after", "third") / WEIGHTS_NAME
    assert after.read_bytes() == before.read_bytes()
    for refused in (
        lambda: save_adapter(net, tmp_path / "none", "second"),
        lambda: lora_disabled(net).__enter__(),
    ):
        with pytest.raises(ValueError, match="merged: first, second; expected unmerge_lora"):
            refused()
    with pytest.raises(ValueError, match="name=third: expected one of the merged: first, second"):
        unmerge_lora(net, "third")
    adapted = randomize(add_lora(net, name="fourth"))(X)
    assert sorted(lora_names(unmerge_lora(net))) == sorted([*NAMES, "fourth"])
    torch.testing.assert_close(net(X), adapted)


def test_dora_is_merged_with_all_that_it_may_stand_on(tiny: nn.Module) -> None:
    add_lora(randomize(add_lora(tiny, name="below")), use_dora=True, name="dora")
    adapted = randomize(tiny)(X)
    for function, name in ((merge_lora, "dora"), (merge_lora, "below"), (unmerge_lora, "below")):
        if function is unmerge_lora:
            merge_lora(tiny)
        before = tiny(X)
        with pytest.raises(ValueError, match="DoRA depends on what lies below it; expected all"):
            function(tiny, name)
        assert torch.equal(tiny(X), before)
    torch.testing.assert_close(tiny(X), adapted)
    assert torch.equal(unmerge_lora(tiny)(X), adapted)


def test_the_base_is_kept_whatever_becomes_of_the_merged_weights(tmp_path: Path) -> None:
    net = stacked()
    set_lora_enabled(net, False)  # nothing is added, and still the weights are others
    base = {key: tensor.clone() for key, tensor in base_state_dict(net).items()}
    merge_lora(net)
    with torch.no_grad():
        net.linear1.weight.add_(1)
    assert changed_tensors(base, base_state_dict(unmerge_lora(net))) == []
    with torch.no_grad():
        merge_lora(net).linear1.bias.add_(1)
    with pytest.raises(ValueError, match=r"the base changed under its adapter: linear1\.bias"):
        save_adapter(unmerge_lora(net), tmp_path, "first")


def test_a_tied_weight_is_merged_where_it_is_adapted_alone() -> None:
    """The embedding shares the linear layer's weight, and stays as it was."""
    net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 5)})
    net["linear"].weight = net["embed"].weight
    before = net["embed"].weight.detach().clone()
    randomize(add_lora(net, target_modules=["linear"]))
    effective = net["linear"].weight.detach().clone()
    for twin in (net, copy.deepcopy(net)):
        merge_lora(twin)
        assert torch.equal(twin["embed"].weight, before)
        assert torch.equal(twin["linear"].weight, effective)
        remove_lora(twin)
        assert twin["linear"].weight is twin["embed"].weight
        assert torch.equal(twin["linear"].weight, before)


def test_the_base_is_kept_in_eval_mode_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).eval()
    randomize(add_lora(net, target_modules=["0"], dropout=0.5))
    freeze_base(net, base_dropout=True)
    adapted = net(X)
    merge_lora(net.train())
    net.requires_grad_(True)
    unmerge_lora(net.eval())
    assert torch.equal(net(X), adapted)  # no dropout
    net.train()
    assert not torch.equal(net(X), net(X))
    assert torch.equal(net[1].running_mean, torch.zeros(5))
    assert not net[1].weight.requires_grad
    assert net[0].parametrizations.weight[0].lora_A.requires_grad


def test_the_summary_is_a_table() -> None:
    net = stacked()
    set_lora_scale(net, -0.5, "second")
    set_lora_enabled(net, False, "third")
    merge_lora(net, "first")
    summary = lora_summary(net)
    assert summary.rows[0] == ("first", "linear1", 1, 2.0, 1.0, 11, "merged")
    assert str(summary).splitlines() == [
        f"base {fingerprint(base_state_dict(net))}",
        "adapter  layer    rank  scaling  scale  numbers  state",
        "first    linear1  1     2        1      11       merged",
        "second   linear1  2     1        -0.5   22       on",
        "first    linear2  1     2        1      8        merged",
        "third    linear2  3     0.6667   1      24       off",
    ]
    assert not lora_summary(TinyNet()).rows
