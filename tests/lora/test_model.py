import copy

import pytest
import torch
from helpers.nets import TinyNet, adapters, dense, randomize
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import (
    LayerSettings,
    add_lora,
    attach,
    base_state_dict,
    has_lora,
    lora_disabled,
    lora_layers,
    lora_names,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_enabled,
)


def test_parameter_counts_of_the_notebook() -> None:
    net = MLP()
    assert sum(p.numel() for p in net.parameters()) == 2_807_010
    add_lora(net, rank=1, alpha=1)
    assert sum(p.numel() for p in lora_parameters(net)) == 6_794
    assert sum(p.numel() for p in net.parameters()) == 2_813_804
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 6_794


def test_nothing_changes_at_the_start(tiny: nn.Module) -> None:
    x = torch.randn(7, 6)
    before = tiny(x)
    add_lora(tiny, rank=3, alpha=8)
    assert torch.equal(tiny(x), before)


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


def test_targets_choose_layers(tiny: nn.Module) -> None:
    add_lora(tiny, target_modules="linear2")
    assert [name for name, _ in lora_layers(tiny)] == ["linear2"]
    assert not any(p.requires_grad for p in tiny.linear1.parameters())


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
        ({"target_modules": "conv"}, "target_modules=conv: .* of: linear1, linear2"),
        ({"target_modules": "("}, "expected a regular expression"),
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


def test_dropout_needs_a_layer_that_shows_its_input() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    net = nn.Sequential(Shifted(3, 2))
    with pytest.raises(ValueError, match="dropout: 0 has a forward of its own; expected dropout=0"):
        add_lora(net, target_modules="0", dropout=0.1)
    assert not has_lora(net)


def test_ranks_and_alphas_of_single_layers(tiny: nn.Module) -> None:
    add_lora(tiny, rank=2, alpha=1, rank_pattern={"linear2": 3}, alpha_pattern={".*1": 4})
    assert [(a.rank, a.alpha, a.scaling) for a in adapters(tiny)] == [(2, 4, 2), (3, 1, 1 / 3)]
    assert sum(p.numel() for p in lora_parameters(tiny)) == 2 * (6 + 5) + 3 * (5 + 3)


def test_adapters_have_names(tiny: nn.Module) -> None:
    x = torch.randn(4, 6)
    base = tiny(x)
    randomize(add_lora(tiny, target_modules="linear1"))
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


def test_attach_takes_exact_names(tiny: nn.Module) -> None:
    block = nn.Sequential(TinyNet(), tiny)
    attach(block, {"1.linear2": LayerSettings(rank=3), "0.linear1": LayerSettings(alpha=2)}, "a")
    assert [name for name, _ in lora_layers(block)] == ["0.linear1", "1.linear2"]
    assert [(a.rank, a.alpha, a.name) for a in adapters(block)] == [(1, 2, "a"), (3, 1.0, "a")]


def test_random_numbers_are_drawn_in_the_models_order() -> None:
    starts = []
    for names in (["linear1", "linear2"], ["linear2", "linear1"]):
        torch.manual_seed(0)
        net = attach(TinyNet(), {name: LayerSettings() for name in names})
        starts.append(torch.cat([p.flatten() for p in lora_parameters(net)]))
    assert torch.equal(*starts)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "settings={}: expected at least one layer"),
        (
            {"linear1": LayerSettings(), "linear3": LayerSettings()},
            "layer=linear3: expected",
        ),
        (
            {"linear1": LayerSettings(), "linear2": LayerSettings(4, init="pissa")},
            "rank=4: expected at most 3 with init=pissa",
        ),
        ({"linear1": LayerSettings(init="zeros")}, "init=zeros: expected one of gaussian, kaiming"),
    ],
)
def test_attach_refuses_before_it_changes_anything(
    tiny: nn.Module, layers: dict[str, LayerSettings], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attach(tiny, layers)
    assert not has_lora(tiny)
    assert all(p.requires_grad for p in tiny.parameters())


def test_a_tied_weight_is_merged_where_it_is_adapted_alone() -> None:
    """The embedding shares the linear layer's weight, and stays as it was."""
    net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 5)})
    net["linear"].weight = net["embed"].weight
    before = net["embed"].weight.detach().clone()
    randomize(add_lora(net, target_modules=["linear"]))
    effective = net["linear"].weight.detach().clone()
    merge_lora(net)
    assert torch.equal(net["embed"].weight, before)
    assert torch.equal(net["linear"].weight, effective)


def test_the_base_keeps_its_names_under_somebody_elses_parametrization(tiny: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(tiny.linear1)
    nn.utils.parametrizations.spectral_norm(tiny.linear2)
    before = {name: tensor.clone() for name, tensor in tiny.eval().state_dict().items()}
    x = torch.randn(4, 6)
    base = tiny(x)
    randomize(add_lora(tiny))
    assert not torch.allclose(tiny(x), base)
    torch.testing.assert_close(tiny(x), dense(tiny, x))
    after = base_state_dict(tiny)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    adapted = tiny(x)
    torch.testing.assert_close(merge_lora(tiny)(x), adapted)
