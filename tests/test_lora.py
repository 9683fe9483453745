import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist import (
    MLP,
    add_lora,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_enabled,
)
from lora_mnist.lora import LoRAParametrization, base_state_dict, has_lora, lora_layers


def randomize(model: nn.Module) -> nn.Module:
    """Give lora_B values, so that the adapters change something."""
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model


def dense(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a TinyNet computes with the effective weights that its layers show."""
    hidden = torch.relu(F.linear(x, model.linear1.weight, model.linear1.bias))
    return F.linear(hidden, model.linear2.weight, model.linear2.bias)


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
    from conftest import TinyNet

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
