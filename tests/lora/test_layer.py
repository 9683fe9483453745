import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import TinyNet, randomize
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lora_mnist.lora.layer import LoRAParametrization, linear_forward
from lora_mnist.lora.model import (
    add_lora,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_scale,
)
from lora_mnist.lora.pissa import PiSSAParametrization
from lora_mnist.lora.weight import adapted_weights


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(ValueError, match="init=gausian: expected gaussian or kaiming"):
        LoRAParametrization(torch.empty(3, 4), rank=1, init="gausian")


@pytest.mark.parametrize(("init", "std"), [("gaussian", 0.5), ("kaiming", 1 / 20 / 3**0.5)])
def test_lora_starts_as_its_papers_say(init, std):
    torch.manual_seed(0)
    lora_A = LoRAParametrization(torch.empty(300, 400), rank=8, init=init, init_std=0.5).lora_A
    assert lora_A.std().item() == pytest.approx(std, rel=0.05)
    assert init == "gaussian" or lora_A.abs().max() <= 1 / 20


@pytest.mark.parametrize("shape", [(6, 4), (4, 2, 3, 3)])
@pytest.mark.parametrize("rank", [1, 3])
def test_pissa_starts_at_the_principal_part(shape, rank):
    """And is saved with twice its rank, or the full one, which a higher one is."""
    weight = torch.randn(shape, dtype=torch.float64)
    assert PiSSAParametrization(weight, 9).rank == 4
    adapter, matrix = PiSSAParametrization(weight, rank, 5), weight.flatten(1)
    start = adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
    # Eckart and Young: no matrix of this rank is nearer.
    residual = torch.linalg.svdvals(matrix - adapter.scaling * start)
    torch.testing.assert_close(residual[:-rank], torch.linalg.svdvals(matrix)[rank:])

    nn.init.normal_(adapter.lora_A)
    lora_A, lora_B = adapter.factors()
    assert len(lora_A) == lora_B.shape[1] == min(4, 2 * rank)
    change = adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1) - start
    torch.testing.assert_close(lora_B.flatten(1) @ lora_A.flatten(1), change)


@pytest.mark.parametrize(("rows", "is_exact"), [(2800, True), (2900, False)])
def test_pissa_of_a_large_weight_is_drawn_from_the_seed_and_nearly_the_principal_part(
    rows, is_exact
):
    """Without structure in the weight, where a random projection is worst."""
    weight, starts = torch.randn(rows, 200, generator=torch.Generator().manual_seed(0)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        adapter = PiSSAParametrization(weight, 8)
        starts.append(adapter.scaling * adapter.lora_B.detach() @ adapter.lora_A.detach())
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2]) is is_exact
    least = torch.linalg.svdvals(weight)[8:].square().sum().sqrt()
    assert (weight - starts[0]).norm() < 1.002 * least


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.integers(1, 2),
        "padding": st.sampled_from([0, 1, (1, 0), "valid"]),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(["zeros", "reflect"]),
    }
)


def conv_net(**geometry):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, **geometry}))


@given(
    geometry=st.none() | CONVOLUTIONS,
    batch=st.sampled_from([(), (0,), (1,), (7,), (2, 3)]),
    rank=st.integers(1, 5),
    alpha=st.floats(0.1, 16),
    use_rslora=st.booleans(),
    scale=st.sampled_from([1, 0.3, -2]),
)
def test_add_lora_computes_the_equation(geometry, batch, rank, alpha, use_rslora, scale):
    """A layer computes with ``W + scale * scaling * lora_B @ lora_A``: outputs and gradients."""
    net = (TinyNet() if geometry is None else conv_net(**geometry)).double()
    plain = copy.deepcopy(net)
    x = torch.randn((*batch, 6) if geometry is None else (*batch[:1], 2, 7, 6), dtype=torch.float64)
    add_lora(net, rank, alpha, target_modules=".*", use_rslora=use_rslora)
    assert torch.equal(net(x), plain(x))
    set_lora_scale(randomize(net), scale)
    weights = {}
    for name, weight in adapted_weights(net).items():
        effective, (adapter,) = getattr(weight.module, weight.attribute), weight.adapters
        weights[f"{name}.weight"] = effective
        update = adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
        update = scale * alpha / (rank**0.5 if use_rslora else rank) * update
        expected = weight.original + update.view_as(effective)
        torch.testing.assert_close(effective, expected)
    expected = functional_call(plain, weights, x)
    torch.testing.assert_close(net(x), expected)
    gradients = []
    for output in (net(x), expected):
        gradients.append(torch.autograd.grad(output.mean(), list(lora_parameters(net))))
    torch.testing.assert_close(*gradients)


def test_lora_trains_without_the_dense_product(tiny, monkeypatch):
    monkeypatch.delattr(LoRAParametrization, "forward")
    conv = add_lora(nn.Sequential(nn.Conv2d(16, 32, 3)), rank=3, target_modules="0")
    assert [tuple(p.shape) for p in lora_parameters(conv)] == [(3, 16, 3, 3), (32, 3, 1, 1)]
    for net, x in ((tiny, torch.randn(4, 6)), (conv, torch.randn(1, 16, 5, 5))):
        for _ in range(2):
            add_lora(net)(x).sum().backward()
        assert all(p.grad is not None for p in lora_parameters(net) if p.requires_grad)
    with pytest.raises(NotImplementedError):
        _ = tiny.linear1.weight


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_a_layer_of_a_high_rank_builds_its_weight_unless_dropout_acts(monkeypatch, kind):
    net, rank, shape, function = conv_net(), 4, (3, 2, 5, 5), F.conv2d
    if kind == "linear":
        net, rank, shape, function = nn.Sequential(nn.Linear(200, 200)), 40, (3, 200), F.linear
    net, x = randomize(add_lora(net, rank=rank, dropout=0.5)), torch.randn(shape)
    expected = function(x, net[0].weight, net[0].bias)
    assert torch.equal(net.eval()(x), expected)
    assert not torch.equal(net.train()(x), net(x))
    monkeypatch.delattr(LoRAParametrization, "forward")
    net(x).sum().backward()


def test_what_becomes_of_a_copy_does_not_reach_the_layer(tiny):
    """Though torch lets a copy share the class that its parametrizations change."""
    layer, x = randomize(add_lora(tiny)).linear1, torch.randn(4, 6)
    adapted, forward = layer(x), type(layer).forward
    copies = [copy.deepcopy(layer) for _ in range(3)]
    remove_lora(copies[0])
    merge_lora(copies[1])
    add_lora(copies[2], target_modules=".*")
    assert type(layer).forward is forward
    for each in (layer, copies[2], copy.deepcopy(layer)):
        assert torch.equal(each(x), adapted)
        assert type(each).forward is linear_forward
    assert [type(each) for each in copies[:2]] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize(("init", "rank"), [("gaussian", 2), ("pissa", 2), ("pissa", 5)])
def test_dropout_acts_on_the_trained_part_while_training(init, rank):
    """y = R x + s B A dropout(x); R is W or, with PiSSA, W - s B0 A0, which is 0 at full rank."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5))
    x, rest = torch.randn(4, 6), net[0].weight.detach().clone()
    add_lora(net, rank=rank, alpha=3.0, target_modules="0", init=init, dropout=0.4)
    adapter = net[0].parametrizations.weight[0]
    if init == "pissa":
        rest -= adapter.scaling * adapter.start_B @ adapter.start_A
    with torch.no_grad():
        adapter.lora_B.add_(torch.randn_like(adapter.lora_B))
    torch.manual_seed(1)
    noisy = net.train()(x)
    torch.manual_seed(1)
    trained = adapter.scaling * adapter.lora_B @ adapter.lora_A
    expected = F.linear(x, rest, net[0].bias) + F.linear(F.dropout(x, 0.4), trained)
    torch.testing.assert_close(noisy, expected)
    torch.testing.assert_close(net.eval()(x), F.linear(x, rest + trained, net[0].bias))


def test_dropout_leaves_out_a_layer_that_reads_its_weight():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 4, 5, 5)
    randomize(add_lora(net, target_modules=".*", dropout=0.5)).train()
    depthwise = net[0](x)
    torch.testing.assert_close(net[0].eval()(x), depthwise)
    noisy = net[1](depthwise)
    assert not torch.allclose(net[1].eval()(depthwise), noisy)


def test_dora_splits_magnitude_and_direction(tiny):
    """Equation 5 of the paper; between 0 and 1 both move, and an output without weights is one."""
    with torch.no_grad():
        tiny.linear1.weight[2] = 0
    weight, x = tiny.linear1.weight.detach().clone(), torch.randn(4, 6)
    before = tiny(x)
    adapter = add_lora(tiny, rank=2, alpha=3.0, init="dora").linear1.parametrizations.weight[0]
    torch.testing.assert_close(tiny(x), before)
    tiny(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in lora_parameters(tiny))
    randomize(tiny)
    for scale in (1, 0.3, 0):
        set_lora_scale(tiny, scale)
        moved = weight + scale * 1.5 * adapter.lora_B @ adapter.lora_A
        norm = weight.norm(dim=1)
        magnitude = norm + scale * (adapter.lora_magnitude_vector - norm)
        expected = magnitude[:, None] * torch.nn.functional.normalize(moved)
        torch.testing.assert_close(tiny.linear1.weight, expected)
    assert torch.equal(tiny.linear1.weight, weight)
