from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, adapters, randomize
from torch import nn

from lora_mnist.lora import (
    LayerSettings,
    add_lora,
    base_state_dict,
    changed_tensors,
    fold_lora_scale,
    lora_adapters,
    lora_disabled,
    lora_names,
    lora_parameters,
    lora_weights,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    set_lora_scale,
)
from lora_mnist.lora.model import attach

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def test_only_lora_learns(tiny: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    add_lora(tiny, rank=3, alpha=8)
    assert {name for name, p in tiny.named_parameters() if p.requires_grad} == {
        f"linear{i}.parametrizations.weight.0.lora_{side}" for i in (1, 2) for side in "AB"
    }
    optimizer = torch.optim.Adam(tiny.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        tiny(X).square().sum().backward()
        optimizer.step()
    assert all(p.any() for p in lora_parameters(tiny))
    assert changed_tensors(before, base_state_dict(tiny)) == []


def test_adapters_have_names(tiny: nn.Module) -> None:
    base = tiny(X)
    randomize(add_lora(tiny, target_modules="linear1"))
    add_lora(tiny, name="nines")
    add_lora(tiny)
    assert lora_names(tiny) == ["default", "nines", "default2"]
    learns = [p.requires_grad for adapter in adapters(tiny) for p in adapter.parameters()]
    assert learns == [False, False, False, False, True, True, False, False, True, True]
    everything = randomize(tiny)(X)
    set_lora_enabled(tiny, False)
    assert torch.equal(tiny(X), base)
    set_lora_enabled(tiny, True, "default")
    one = tiny(X)
    with pytest.raises(KeyError), lora_disabled(tiny, "default"):
        assert torch.equal(tiny(X), base)
        raise KeyError
    assert torch.equal(tiny(X), one)
    set_lora_enabled(tiny, True)
    assert torch.equal(tiny(X), everything)
    set_lora_scale(tiny, 0, "nines")
    set_lora_scale(tiny, 0, "default2")
    assert torch.equal(tiny(X), one)


def test_what_no_adapter_is_called_is_an_error(tiny: nn.Module) -> None:
    for function in (merge_lora, remove_lora, fold_lora_scale):
        with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
            function(tiny)
    add_lora(tiny)
    for refused in (
        lambda: set_lora_enabled(tiny, True, "x"),
        lambda: set_lora_scale(tiny, 1, "x"),
        lambda: lora_disabled(tiny, "x").__enter__(),
        lambda: merge_lora(tiny, "x"),
        lambda: remove_lora(tiny, "x"),
    ):
        with pytest.raises(ValueError, match="name=x: expected one of default"):
            refused()
    with pytest.raises(ValueError, match="name=default: expected another name than default"):
        add_lora(tiny, name="default")
    with pytest.raises(ValueError, match="scale=nan: expected a finite number"):
        set_lora_scale(tiny, float("nan"))


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (nn.ReLU, {"target_modules": "conv"}, "target_modules=conv: .* of: 0.linear1, 0.linear2"),
        (nn.ReLU, {"init": "pissa", "rank": 4}, "rank=4: expected at most 3 with init=pissa"),
        (nn.ReLU, {"rank_pattern": {"conv": 2}}, "rank_pattern={conv: 2}: expected .* of: 0.linea"),
        (nn.ReLU, {"rank_pattern": {"linear2": 0}}, "rank=0: expected an integer >= 1"),
        (nn.ReLU, {"alpha_pattern": {"linear1": 0}}, "alpha=0: expected a finite number > 0"),
        (nn.ReLU, {"alpha_pattern": [1]}, r"alpha_pattern=\[1\]: expected a mapping"),
        (lambda: nn.LazyLinear(3), {}, "1.weight: expected numbers, found a lazy tensor"),
        (lambda: nn.Linear(5, 3, device="meta"), {}, "1.weight: expected numbers, .* meta device"),
    ],
)
def test_refusals_leave_the_model_alone(layer: Any, arguments: Any, message: str) -> None:
    net = nn.Sequential(TinyNet(), layer())
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=message):
        add_lora(net, **{"target_modules": ".*", **arguments})
    assert not lora_adapters(net)
    assert all(p.requires_grad for p in net.parameters())
    assert list(net.state_dict()) == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net[0].modules())


def test_ranks_and_alphas_of_single_layers(tiny: nn.Module) -> None:
    add_lora(tiny, rank=2, alpha=1, rank_pattern={"linear2": 3}, alpha_pattern={"^linear1": 4})
    assert [(a.settings.rank, a.settings.alpha, a.scaling) for a in adapters(tiny)] == [
        (2, 4, 2),
        (3, 1, 1 / 3),
    ]
    assert sum(p.numel() for p in lora_parameters(tiny)) == 2 * (6 + 5) + 3 * (5 + 3)


def test_attach_takes_exact_names_and_draws_in_the_models_order() -> None:
    starts = []
    for names in (["0.linear1", "1.linear2"], ["1.linear2", "0.linear1"]):
        torch.manual_seed(0)
        net = nn.Sequential(TinyNet(), TinyNet())
        attach(net, {name: LayerSettings(rank=len(name)) for name in names}, "a")
        assert list(lora_weights(net)) == ["0.linear1", "1.linear2"]
        starts.append(torch.cat([p.flatten() for p in lora_parameters(net)]))
    assert torch.equal(*starts)
