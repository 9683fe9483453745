import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import TinyNet, dense, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mnist.lora import (
    LayerSettings,
    LoRAParametrization,
    add_lora,
    has_lora,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_scale,
)


@pytest.mark.parametrize(("init", "std"), [("gaussian", 0.5), ("kaiming", 1 / 20 / 3**0.5)])
def test_shapes_and_initialisation(init: str, std: float) -> None:
    torch.manual_seed(0)
    settings = LayerSettings(rank=8, init=init, init_std=0.5 if init == "gaussian" else None)
    adapter = LoRAParametrization(torch.empty(300, 400), settings)
    assert adapter.lora_A.shape == (8, 400)
    assert adapter.lora_B.shape == (300, 8)
    assert adapter.lora_A.std().item() == pytest.approx(std, rel=0.05)
    assert adapter.lora_A.mean().item() == pytest.approx(0, abs=0.05)
    assert init == "gaussian" or adapter.lora_A.abs().max() <= 1 / 20
    assert not adapter.lora_B.any()


TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
}


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 8),
    alpha=st.floats(0.1, 16),
    use_rslora=st.booleans(),
    scale=st.sampled_from([1, 0.3, -2]),
    shape=st.sampled_from([(6,), (0, 6), (1, 6), (7, 6), (2, 3, 6)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_laws(
    rank: int, alpha: float, use_rslora: bool, scale: float, shape: Any, dtype: Any, seed: int
) -> None:
    """Factored equals dense; off equals base; merged equals adapted; removed equals base."""
    torch.manual_seed(seed)
    net = TinyNet().to(dtype)
    x = torch.randn(shape, dtype=dtype)
    base, weight = net(x), net.linear1.weight.detach().clone()
    randomize(add_lora(net, rank=rank, alpha=alpha, use_rslora=use_rslora))
    trained = net(x)
    set_lora_scale(net, scale)
    adapted = net(x)
    assert (scale == 1) == torch.equal(adapted, trained) or adapted.numel() == 0
    torch.testing.assert_close(adapted, dense(net, x), **TOLERANCES[dtype])
    update = (net.linear1.weight - weight) / scale
    adapter = net.linear1.parametrizations.weight[0]
    expected = adapter.lora_B @ adapter.lora_A * alpha / (rank**0.5 if use_rslora else rank)
    torch.testing.assert_close(update, expected, **TOLERANCES[dtype])
    with lora_disabled(net):
        assert torch.equal(net(x), base)
        assert torch.equal(net.linear1.weight, weight)
    merged = merge_lora(copy.deepcopy(net))
    assert not has_lora(merged)
    assert type(merged.linear1) is nn.Linear
    torch.testing.assert_close(merged(x), adapted, **TOLERANCES[dtype])
    set_lora_scale(net, 0)
    assert torch.equal(net(x), base)
    assert torch.equal(net.linear1.weight, weight)
    assert torch.equal(remove_lora(net)(x), base)
    assert torch.equal(net.linear1.weight, weight)


def conv_net(**geometry: Any) -> nn.Module:
    """One convolution, 2 to 4 channels, of any geometry."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, **geometry})).double()


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 5),
    shape=st.sampled_from([(3, 2, 7, 6), (2, 7, 6)]),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (1, 0), "valid"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "reflect"]),
    init=st.sampled_from(["gaussian", "kaiming", "pissa"]),
)
def test_laws_of_convolutions(rank: int, shape: Any, init: str, **geometry: Any) -> None:
    net = conv_net(**geometry)
    x = torch.randn(shape, dtype=torch.float64)
    base = net(x)
    rank = min(rank, 2) if init == "pissa" else rank
    add_lora(net, rank=rank, alpha=2.0, target_modules="0", init=init)
    assert torch.equal(net(x), base)
    adapted = randomize(net)(x)
    assert not torch.allclose(adapted, base)
    dense = conv_net(**geometry)
    dense[0].weight.data = net[0].weight.data
    torch.testing.assert_close(adapted, dense(x), **TOLERANCES[torch.float64])
    with lora_disabled(net):
        assert torch.equal(net(x), base)
    merged = merge_lora(copy.deepcopy(net))
    torch.testing.assert_close(merged(x), adapted, **TOLERANCES[torch.float64])
    assert torch.equal(remove_lora(net)(x), base)
    assert type(net[0]) is nn.Conv2d


def test_gradients_equal_those_of_the_dense_parametrization(tiny: nn.Module) -> None:
    randomize(add_lora(tiny.double(), rank=2, alpha=3))
    x = torch.randn(7, 6, dtype=torch.float64)
    parameters = list(lora_parameters(tiny))
    factored = torch.autograd.grad(tiny(x).square().sum(), parameters)
    through_weight = torch.autograd.grad(dense(tiny, x).square().sum(), parameters)
    torch.testing.assert_close(factored, through_weight, **TOLERANCES[torch.float64])


def test_training_never_builds_the_dense_product(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LoRAParametrization, "forward")
    conv = add_lora(conv_net(), rank=3, target_modules="0")
    assert [tuple(p.shape) for p in lora_parameters(conv)] == [(3, 2, 3, 3), (4, 3, 1, 1)]
    for net, x in ((tiny, torch.randn(4, 6)), (conv, torch.randn(1, 2, 5, 5).double())):
        for _ in range(2):
            add_lora(net)(x).sum().backward()
        assert all(p.grad is not None for p in lora_parameters(net) if p.requires_grad)
    with pytest.raises(NotImplementedError):
        _ = tiny.linear1.weight


def test_mixed_precision(tiny: nn.Module) -> None:
    randomize(add_lora(tiny))
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tiny(x)
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), tiny(x), rtol=0.1, atol=0.1)


def test_dropout_on_the_adapters_input_while_training() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(4, 6)
    base = net(x)
    randomize(add_lora(net, rank=2, target_modules="0", dropout=0.4))
    adapter = net[0].parametrizations.weight[0]
    torch.manual_seed(1)
    noisy = net.train()(x)
    torch.manual_seed(1)
    update = F.dropout(x, 0.4) @ adapter.lora_A.T @ adapter.lora_B.T * adapter.scaling
    torch.testing.assert_close(noisy, base + update)
    torch.testing.assert_close(net.eval()(x), F.linear(x, net[0].weight, net[0].bias))
