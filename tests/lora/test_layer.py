import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import TinyNet, dense, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import (
    LoRAParametrization,
    add_lora,
    has_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    remove_lora,
)


def test_effective_weight_is_the_papers_equation(tiny: nn.Module) -> None:
    randomize(add_lora(tiny, rank=2, alpha=3))
    for _, layer in lora_layers(tiny):
        adapter = layer.parametrizations.weight[0]
        original = layer.parametrizations.weight.original
        assert adapter.scaling == 3 / 2
        expected = original + (adapter.lora_B @ adapter.lora_A) * adapter.scaling
        assert torch.equal(layer.weight, expected)
        assert not torch.equal(layer.weight, original)


def test_shapes_and_initialisation() -> None:
    torch.manual_seed(0)
    layer = add_lora(nn.Sequential(nn.Linear(400, 300)), rank=4, target_modules="0", init_std=0.5)[
        0
    ]
    adapter = layer.parametrizations.weight[0]
    assert adapter.lora_A.shape == (4, 400)
    assert adapter.lora_B.shape == (300, 4)
    assert adapter.lora_A.std().item() == pytest.approx(0.5, rel=0.05)
    assert adapter.lora_A.mean().item() == pytest.approx(0, abs=0.05)
    assert not adapter.lora_B.any()


def test_kaiming_is_uniform_in_the_fan_in() -> None:
    torch.manual_seed(0)
    layer = add_lora(
        nn.Sequential(nn.Linear(400, 300)), rank=8, target_modules="0", init="kaiming"
    )[0]
    values = layer.parametrizations.weight[0].lora_A
    assert values.abs().max() <= 1 / 20
    assert values.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)
    assert not layer.parametrizations.weight[0].lora_B.any()


def test_rank_stabilised_scaling(tiny: nn.Module) -> None:
    add_lora(tiny, rank=4, alpha=3, use_rslora=True)
    assert tiny.linear1.parametrizations.weight[0].scaling == 3 / 2
    plain = add_lora(TinyNet(), rank=4, alpha=3)
    assert plain.linear1.parametrizations.weight[0].scaling == 3 / 4


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 8),
    alpha=st.floats(0.1, 16),
    shape=st.sampled_from([(6,), (0, 6), (1, 6), (7, 6), (2, 3, 6)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_laws(
    rank: int, alpha: float, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    """Factored equals dense; off equals base; merged equals adapted; removed equals base."""
    torch.manual_seed(seed)
    net = TinyNet().to(dtype)
    x = torch.randn(shape, dtype=dtype)
    base = net(x)
    base_weight = net.linear1.weight.detach().clone()
    randomize(add_lora(net, rank=rank, alpha=alpha))
    adapted = net(x)
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(adapted, dense(net, x), **tolerance)
    with lora_disabled(net):
        assert torch.equal(net(x), base)
        assert torch.equal(net.linear1.weight, base_weight)
    assert torch.equal(net(x), adapted)
    merged = merge_lora(copy.deepcopy(net))
    assert not has_lora(merged)
    assert type(merged.linear1) is nn.Linear
    torch.testing.assert_close(merged(x), adapted, **tolerance)
    removed = remove_lora(net)
    assert type(removed.linear1) is nn.Linear
    assert torch.equal(removed(x), base)
    assert torch.equal(removed.linear1.weight, base_weight)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_factored_equals_dense_on_the_real_sizes(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    net = randomize(add_lora(MLP().to(dtype), rank=3, alpha=2.0, init_std=0.02))
    for layer in (net.linear1, net.linear2, net.linear3):
        nn.init.normal_(layer.parametrizations.weight[0].lora_A, std=0.02)
        nn.init.normal_(layer.parametrizations.weight[0].lora_B, std=0.02)
        x = torch.randn(10, layer.in_features, dtype=dtype)
        torch.testing.assert_close(
            layer(x), F.linear(x, layer.weight, layer.bias), rtol=tolerance, atol=tolerance
        )


def test_gradients_equal_those_of_the_dense_parametrization(tiny: nn.Module) -> None:
    tiny.double()
    randomize(add_lora(tiny, rank=2, alpha=3))
    x = torch.randn(7, 6, dtype=torch.float64)
    parameters = list(lora_parameters(tiny))
    factored = torch.autograd.grad(tiny(x).square().sum(), parameters)
    through_weight = torch.autograd.grad(dense(tiny, x).square().sum(), parameters)
    for ours, theirs in zip(factored, through_weight, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_training_never_builds_the_dense_product(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_lora(tiny)

    def refuse(*_: object) -> None:
        raise AssertionError("the dense weight was built")

    monkeypatch.setattr(LoRAParametrization, "forward", refuse)
    tiny(torch.randn(4, 6)).sum().backward()
    add_lora(tiny)
    tiny(torch.randn(4, 6)).sum().backward()
    with pytest.raises(AssertionError):
        _ = tiny.linear1.weight


def conv_net(dtype: torch.dtype = torch.float64, **geometry: Any) -> nn.Module:
    """One convolution, 2 to 4 channels, of any geometry."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, **geometry})).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 5),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (1, 0), "valid"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "reflect"]),
    init=st.sampled_from(["gaussian", "kaiming"]),
)
def test_laws_of_convolutions(rank: int, init: str, **geometry: Any) -> None:
    """Factored equals dense; off equals base; merged equals adapted; removed equals base."""
    net = conv_net(**geometry)
    for shape in ((3, 2, 7, 6), (2, 7, 6)):
        net = conv_net(**geometry)
        x = torch.randn(shape, dtype=torch.float64)
        base, weight = net(x), net[0].weight.detach().clone()
        add_lora(net, rank=rank, alpha=2.0, target_modules="0", init=init)
        assert torch.equal(net(x), base)
        adapted = randomize(net)(x)
        assert not torch.allclose(adapted, base)
        adapter = net[0].parametrizations.weight[0]
        update = torch.einsum("or,rihw->oihw", adapter.lora_B[..., 0, 0], adapter.lora_A)
        assert torch.allclose(net[0].weight, weight + update * 2 / rank)
        dense = conv_net(**geometry)
        dense[0].weight.data = net[0].weight.data
        torch.testing.assert_close(adapted, dense(x), rtol=1e-12, atol=1e-12)
        with lora_disabled(net):
            assert torch.equal(net(x), base)
        merged = merge_lora(copy.deepcopy(net))
        assert type(merged[0]) is nn.Conv2d
        torch.testing.assert_close(merged(x), adapted, rtol=1e-12, atol=1e-12)
        assert torch.equal(remove_lora(net)(x), base)


def test_a_convolution_never_builds_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    net = add_lora(conv_net(), rank=3, target_modules="0")
    shapes = [tuple(p.shape) for p in lora_parameters(net)]
    assert shapes == [(3, 2, 3, 3), (4, 3, 1, 1)]
    monkeypatch.delattr(LoRAParametrization, "forward")
    net(torch.randn(1, 2, 5, 5, dtype=torch.float64)).sum().backward()
    assert not any(torch.isnan(p.grad).any() for p in lora_parameters(net))


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
