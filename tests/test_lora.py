import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist import (
    MLP,
    add_lora,
    lora_disabled,
    lora_names,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_enabled,
)
from lora_mnist.lora import (
    base_state_dict,
    has_lora,
    lora_adapters,
    lora_layers,
    lora_state_dict,
)
from lora_mnist.parametrization import LoRAParametrization


def randomize(model: nn.Module) -> nn.Module:
    """Give lora_B values, so that the adapters change something."""
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model


def dense(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a TinyNet computes with the effective weights that its layers show."""
    hidden = torch.relu(F.linear(x, model.linear1.weight, model.linear1.bias))
    return F.linear(hidden, model.linear2.weight, model.linear2.bias)


def adapters(model: nn.Module) -> list[LoRAParametrization]:
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def test_parameter_counts_of_the_notebook() -> None:
    net = MLP()
    assert sum(p.numel() for p in net.parameters()) == 2_807_010
    add_lora(net, rank=1, alpha=1)
    assert sum(p.numel() for p in lora_parameters(net)) == 6_794
    assert sum(p.numel() for p in net.parameters()) == 2_813_804
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 6_794


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
    layer = add_lora(nn.Sequential(nn.Linear(400, 300)), rank=4, targets="0", init_std=0.5)[0]
    adapter = layer.parametrizations.weight[0]
    assert adapter.lora_A.shape == (4, 400)
    assert adapter.lora_B.shape == (300, 4)
    assert adapter.lora_A.std().item() == pytest.approx(0.5, rel=0.05)
    assert adapter.lora_A.mean().item() == pytest.approx(0, abs=0.05)
    assert not adapter.lora_B.any()


def test_nothing_changes_at_the_start(tiny: nn.Module) -> None:
    x = torch.randn(7, 6)
    before = tiny(x)
    add_lora(tiny, rank=3, alpha=8)
    assert torch.equal(tiny(x), before)


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


def test_only_lora_learns(tiny: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    add_lora(tiny)
    trainable = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert trainable == {
        f"linear{i}.parametrizations.weight.0.lora_{side}" for i in (1, 2) for side in "AB"
    }
    optimizer = torch.optim.Adam([p for p in tiny.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        tiny(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    assert all(p.any() for p in lora_parameters(tiny))
    after = base_state_dict(tiny)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_two_adapters_stack(tiny: nn.Module) -> None:
    x = torch.randn(4, 6)
    randomize(add_lora(tiny, rank=1))
    one = tiny(x)
    add_lora(tiny, rank=2, alpha=4)
    assert torch.equal(tiny(x), one)
    first, second = tiny.linear1.parametrizations.weight
    assert not first.lora_A.requires_grad
    assert second.lora_A.requires_grad
    randomize(tiny)
    torch.testing.assert_close(tiny(x), dense(tiny, x), rtol=1e-5, atol=1e-5)
    second.enabled = False
    expected = first.lora_B @ first.lora_A + tiny.linear1.parametrizations.weight.original
    torch.testing.assert_close(tiny.linear1.weight, expected)
    adapted = tiny(x)
    with lora_disabled(tiny):
        assert not first.enabled
    assert first.enabled
    assert not second.enabled
    torch.testing.assert_close(merge_lora(tiny)(x), adapted)


def test_toggle(tiny: nn.Module) -> None:
    x = torch.randn(4, 6)
    base = tiny(x)
    randomize(add_lora(tiny))
    adapted = tiny(x)
    set_lora_enabled(tiny, False)
    assert torch.equal(tiny(x), base)
    set_lora_enabled(tiny, True)
    assert torch.equal(tiny(x), adapted)
    with pytest.raises(KeyError), lora_disabled(tiny):
        raise KeyError
    assert torch.equal(tiny(x), adapted)


def test_deepcopy_is_independent(tiny: nn.Module) -> None:
    x = torch.randn(4, 6)
    randomize(add_lora(tiny, rank=2))
    twin = copy.deepcopy(tiny)
    expected = tiny(x)
    assert torch.equal(twin(x), expected)
    randomize(twin)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(tiny(x), expected)
    randomize(tiny)
    twin.load_state_dict(tiny.state_dict())
    assert torch.equal(twin(x), tiny(x))


def test_follows_the_model_to_another_dtype(tiny: nn.Module) -> None:
    randomize(add_lora(tiny)).double()
    assert all(p.dtype == torch.float64 for p in lora_parameters(tiny))
    assert tiny(torch.randn(4, 6, dtype=torch.float64)).dtype == torch.float64
    add_lora(tiny)
    assert tiny.linear1.parametrizations.weight[1].lora_A.dtype == torch.float64


def test_mixed_precision(tiny: nn.Module) -> None:
    randomize(add_lora(tiny))
    x = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tiny(x)
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), tiny(x), rtol=0.1, atol=0.1)


def test_targets_choose_layers(tiny: nn.Module) -> None:
    add_lora(tiny, targets="linear2")
    assert [name for name, _ in lora_layers(tiny)] == ["linear2"]
    assert not any(p.requires_grad for p in tiny.linear1.parameters())


def test_other_parametrizations_are_respected(tiny: nn.Module) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    x = torch.randn(4, 6)
    randomize(add_lora(tiny))
    parametrize.register_parametrization(tiny.linear1, "weight", Double())
    torch.testing.assert_close(tiny(x), dense(tiny, x))
    with pytest.raises(ValueError, match="another parametrization"):
        remove_lora(tiny)
    assert has_lora(tiny)


def test_a_subclass_with_its_own_forward_keeps_it() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layer = Shifted(3, 2)
    x = torch.randn(4, 3)
    base = layer(x)
    add_lora(layer, targets="")
    assert torch.equal(layer(x), base)
    randomize(layer)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank=0: expected an integer >= 1"),
        ({"rank": -3}, "rank=-3: expected an integer >= 1"),
        ({"rank": 1.5}, "rank=1.5: expected an integer >= 1"),
        ({"rank": True}, "rank=True: expected an integer >= 1"),
        ({"alpha": float("nan")}, "alpha=nan: expected a finite number > 0"),
        ({"alpha": float("inf")}, "alpha=inf: expected a finite number > 0"),
        ({"alpha": 0}, "alpha=0: expected a finite number > 0"),
        ({"init_std": -1.0}, "init_std=-1.0: expected a finite number > 0"),
        ({"targets": "conv"}, "targets=conv: .* of: linear1, linear2"),
        ({"targets": "("}, "expected a regular expression"),
        ({"init": "zeros"}, "init=zeros: expected one of gaussian, kaiming, pissa"),
        ({"init": "pissa", "rank": 4}, "rank=4: expected at most 3 with init=pissa"),
        ({"use_rslora": 1}, "use_rslora=1: expected true or false"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number from 0 to below 1"),
        ({"dropout": -0.1}, "dropout=-0.1: expected a number from 0 to below 1"),
        ({"rank_pattern": {"conv": 2}}, "rank_pattern={conv: 2}: expected a layer of: linear1, "),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern=\(: expected a regular expression"),
        ({"rank_pattern": {"linear2": 0}}, "rank=0: expected an integer >= 1"),
        ({"alpha_pattern": {"linear1": 0}}, "alpha=0: expected a finite number > 0"),
    ],
)
def test_refusals_leave_the_model_alone(
    tiny: nn.Module, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(tiny, **arguments)
    assert not has_lora(tiny)
    assert all(p.requires_grad for p in tiny.parameters())


@pytest.mark.parametrize("function", [merge_lora, remove_lora, lambda m: set_lora_enabled(m, True)])
def test_a_model_without_lora_is_an_error(tiny: nn.Module, function: object) -> None:
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        function(tiny)


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
        add_lora(net, rank=rank, alpha=2.0, targets="0", init=init)
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
    net = add_lora(conv_net(), rank=3, targets="0")
    shapes = [tuple(p.shape) for p in lora_parameters(net)]
    assert shapes == [(3, 2, 3, 3), (4, 3, 1, 1)]
    monkeypatch.delattr(LoRAParametrization, "forward")
    net(torch.randn(1, 2, 5, 5, dtype=torch.float64)).sum().backward()
    assert not any(torch.isnan(p.grad).any() for p in lora_parameters(net))


def test_grouped_convolutions_are_refused() -> None:
    net = conv_net(groups=2)
    with pytest.raises(ValueError, match="targets=0: 0 has groups=2; expected groups=1"):
        add_lora(net, targets="0")
    assert not has_lora(net)


def test_rank_stabilised_scaling(tiny: nn.Module) -> None:
    add_lora(tiny, rank=4, alpha=3, use_rslora=True)
    assert [a.scaling for a in adapters(tiny)] == [3 / 2, 3 / 2]
    assert [a.scaling for a in adapters(add_lora(TinyNet(), rank=4, alpha=3))] == [3 / 4, 3 / 4]


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "pissa"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_start_equals_the_base(tiny: nn.Module, init: str, use_rslora: bool) -> None:
    x = torch.randn(7, 6)
    base, weight = tiny(x), tiny.linear1.weight.detach().clone()
    tiny.train()
    add_lora(tiny, rank=2, alpha=3, init=init, use_rslora=use_rslora, dropout=0.5)
    assert torch.equal(tiny(x), base)
    assert torch.equal(tiny.linear1.weight, weight)
    assert sum(p.numel() for p in lora_parameters(tiny)) == 2 * (6 + 5 + 5 + 3)


def test_kaiming_is_uniform_in_the_fan_in() -> None:
    torch.manual_seed(0)
    layer = add_lora(nn.Sequential(nn.Linear(400, 300)), rank=8, targets="0", init="kaiming")[0]
    values = layer.parametrizations.weight[0].lora_A
    assert values.abs().max() <= 1 / 20
    assert values.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)
    assert not layer.parametrizations.weight[0].lora_B.any()


@pytest.mark.parametrize("make", [lambda: TinyNet().double(), conv_net])
def test_pissa_starts_at_the_principal_part(make: Any) -> None:
    net = add_lora(make(), rank=2, alpha=5, targets=".*", init="pissa")
    for adapter in adapters(net):
        (weight,) = (m.original for m in net.modules() if adapter in m.children())
        matrix = weight.flatten(1)
        principal = adapter.scaling * adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
        values = torch.linalg.svdvals(matrix)
        # Eckart and Young: no matrix of rank 2 is nearer.
        assert torch.allclose(torch.linalg.svdvals(principal)[:2], values[:2])
        residual = torch.linalg.svdvals(matrix - principal)
        assert torch.allclose(residual[:-2], values[2:])
        assert torch.allclose(residual[-2:], torch.zeros(2, dtype=residual.dtype))
    base = {name: tensor.clone() for name, tensor in make().state_dict().items()}
    assert base_state_dict(net).keys() == base.keys()
    assert sum(t.numel() for t in lora_state_dict(net).values()) == 2 * sum(
        p.numel() for p in lora_parameters(net)
    )


def test_pissa_trains_the_principal_part_over_a_frozen_residual() -> None:
    net = TinyNet().double()
    x = torch.randn(7, 6, dtype=torch.float64)
    base = net(x)
    add_lora(net, rank=2, alpha=5, init="pissa")
    residuals = [
        layer.weight.detach() - adapter.scaling * adapter.lora_B @ adapter.lora_A
        for _, layer in lora_layers(net)
        for adapter in lora_adapters(layer)
    ]
    randomize(net)
    for (_, layer), residual in zip(lora_layers(net), residuals, strict=True):
        (adapter,) = lora_adapters(layer)
        expected = residual + adapter.scaling * adapter.lora_B @ adapter.lora_A
        torch.testing.assert_close(layer.weight, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net(x), dense(net, x), rtol=1e-12, atol=1e-12)
    adapted = net(x)
    torch.testing.assert_close(merge_lora(copy.deepcopy(net))(x), adapted)
    assert torch.equal(remove_lora(net)(x), base)


def test_dropout_on_the_adapters_input_while_training() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(4, 6)
    base = net(x)
    randomize(add_lora(net, rank=2, targets="0", dropout=0.4))
    adapter = net[0].parametrizations.weight[0]
    torch.manual_seed(1)
    noisy = net.train()(x)
    torch.manual_seed(1)
    update = F.dropout(x, 0.4) @ adapter.lora_A.T @ adapter.lora_B.T * adapter.scaling
    torch.testing.assert_close(noisy, base + update)
    torch.testing.assert_close(net.eval()(x), F.linear(x, net[0].weight, net[0].bias))


def test_dropout_needs_a_layer_that_shows_its_input() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    net = nn.Sequential(Shifted(3, 2))
    with pytest.raises(ValueError, match="dropout: 0 has a forward of its own; expected dropout=0"):
        add_lora(net, targets="0", dropout=0.1)
    assert not has_lora(net)


def test_ranks_and_alphas_of_single_layers(tiny: nn.Module) -> None:
    add_lora(tiny, rank=2, alpha=1, rank_pattern={"linear2": 3}, alpha_pattern={".*1": 4})
    assert [(a.rank, a.alpha, a.scaling) for a in adapters(tiny)] == [(2, 4, 2), (3, 1, 1 / 3)]
    assert sum(p.numel() for p in lora_parameters(tiny)) == 2 * (6 + 5) + 3 * (5 + 3)


def test_adapters_have_names(tiny: nn.Module) -> None:
    x = torch.randn(4, 6)
    base = tiny(x)
    randomize(add_lora(tiny, targets="linear1"))
    one = tiny(x)
    add_lora(tiny, name="nines")
    add_lora(tiny)
    assert lora_names(tiny) == ["default", "nines", "default2"]
    randomize(tiny)
    everything = tiny(x)
    set_lora_enabled(tiny, False)
    set_lora_enabled(tiny, True, "default")
    assert not torch.equal(tiny(x), one)  # randomized again
    with lora_disabled(tiny, "default"):
        assert torch.equal(tiny(x), base)
    set_lora_enabled(tiny, True)
    assert torch.equal(tiny(x), everything)
    for refused in (lambda: set_lora_enabled(tiny, True, "x"), lora_disabled(tiny, "x").__enter__):
        with pytest.raises(ValueError, match="name=x: expected one of default, nines, default2"):
            refused()
    with pytest.raises(ValueError, match="name=nines: expected another name than default, nines"):
        add_lora(tiny, name="nines")
