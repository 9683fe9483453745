import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.nets import TinyNet, adapters, dense, randomize
from torch import nn

from lora_mnist.lora import (
    add_deltas,
    add_lora,
    fold_lora_scale,
    load_adapter,
    lora_adapters,
    lora_parameters,
    lora_weights,
    loraplus,
    merge_lora,
    save_adapter,
    set_lora_enabled,
    set_lora_scale,
)


@pytest.mark.parametrize("make", [TinyNet, lambda: nn.Sequential(nn.Conv2d(2, 4, 3))])
def test_pissa_starts_at_the_principal_part(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = add_lora(make().double(), rank=2, alpha=5, target_modules=".*", init="pissa")
    for weight in lora_weights(net).values():
        (adapter,) = weight.adapters
        matrix = weight.base.flatten(1)
        principal = adapter.scaling * adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
        # Eckart and Young: no matrix of rank 2 is nearer.
        residual = torch.linalg.svdvals(matrix - principal)
        torch.testing.assert_close(residual[:-2], torch.linalg.svdvals(matrix)[2:])


@pytest.mark.parametrize("kind", ["pissa", "dora"])
def test_it_trains_as_in_peft(kind: str, tiny: nn.Module) -> None:
    """The same steps from the same start, though the base here is never replaced by a residual."""
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    x = torch.randn(6, 6)
    base = tiny(x)
    options = {"use_dora": True} if kind == "dora" else {"init": "pissa"}
    ours = add_lora(copy.deepcopy(tiny), rank=2, alpha=3.0, **options)
    options = {"use_dora": True} if kind == "dora" else {"init_lora_weights": "pissa"}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", **options)
    theirs = peft.get_peft_model(copy.deepcopy(tiny), config)
    if kind == "dora":
        for adapter, name in zip(adapters(ours), ("linear1", "linear2"), strict=True):
            layer = theirs.get_submodule(f"base_model.model.{name}")
            adapter.lora_A.data.copy_(layer.lora_A.default.weight)
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(9):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert not torch.allclose(ours(x), base, atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("below", ["lora", "dora", "last_layer"])
def test_dora_stands_on_other_adapters(tiny: nn.Module, below: str) -> None:
    """Its norms are those of what lies below it, turned up, down and off."""
    x = torch.randn(4, 6)
    add_deltas(tiny, below) if below == "last_layer" else add_lora(tiny, use_dora=below == "dora")
    first = randomize(tiny)(x)
    add_lora(tiny, rank=2, use_dora=True, name="second")
    assert torch.equal(tiny(x), first)
    randomize(tiny)
    for scale in (1, 0, 0.3):
        set_lora_scale(tiny, scale, "default")
        torch.testing.assert_close(tiny(x), dense(tiny, x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(merge_lora(copy.deepcopy(tiny))(x), tiny(x))


@pytest.mark.parametrize("make", [TinyNet, lambda: nn.Sequential(nn.Conv2d(2, 4, 3))])
@pytest.mark.parametrize("kind", ["lora", "pissa", "dora", "last_layer"])
@pytest.mark.parametrize("scale", [0, 0.3, -1.5])
def test_a_scale_can_be_made_a_part_of_the_adapter(
    make: Callable[[], nn.Module], kind: str, scale: float, tmp_path: Path
) -> None:
    """Of DoRA, too, which is then DoRA with other factors and magnitudes."""
    base = make().double()
    net = add_lora(copy.deepcopy(base), rank=2, target_modules=".*", name="below")
    options = {"dora": {"use_dora": True}, "pissa": {"init": "pissa"}}.get(kind, {})
    if kind == "last_layer":
        add_deltas(net, kind, name="scaled")
    else:
        add_lora(net, rank=2, alpha=3, target_modules=".*", name="scaled", **options)
    x = torch.randn((4, 6) if make is TinyNet else (3, 2, 5, 5), dtype=torch.float64)
    set_lora_scale(randomize(net), scale, "scaled")
    scaled = net(x)
    fold_lora_scale(net, "scaled")
    assert {adapter.scale for adapter in lora_adapters(net)} == {1}
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(net(x), scaled, **close)
    set_lora_enabled(net, False, "below")
    again = load_adapter(base, save_adapter(net, tmp_path, "scaled"))
    torch.testing.assert_close(again(x), net(x), **close)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(6, 5), (4, 6)), (nn.Conv2d(2, 4, 3), (3, 2, 5, 5))]
)
@pytest.mark.parametrize("of", ["zeros", "half precision"])
def test_dora_starts_at_the_base(layer: nn.Module, shape: tuple[int, ...], of: str) -> None:
    """Also where rows have no direction, as in a network that somebody pruned."""
    dtype = torch.bfloat16 if of == "half precision" else torch.float32
    net = nn.Sequential(copy.deepcopy(layer)).to(dtype)
    if of == "zeros":
        nn.init.zeros_(net[0].weight)
    x = torch.randn(shape, dtype=dtype)
    base = net(x)
    assert torch.equal(add_lora(net, use_dora=True)(x), base)
    randomize(net)(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in lora_parameters(net))


def test_a_network_without_biases_has_none_to_train() -> None:
    with pytest.raises(ValueError, match="tensors=bias: expected a network with a bias"):
        add_deltas(nn.Linear(2, 2, bias=False), "bias")


def test_the_last_layer_alone_needs_no_bias() -> None:
    net = add_deltas(nn.Sequential(nn.Linear(2, 3), nn.Conv2d(1, 4, 3, bias=False)), "last_layer")
    assert list(lora_weights(net)) == ["1"]


@pytest.mark.parametrize("lr_ratio", [1, 4.0])
def test_loraplus_gives_lora_b_another_learning_rate(tiny: nn.Module, lr_ratio: float) -> None:
    add_lora(tiny)
    optimizer = loraplus(tiny, lambda groups: torch.optim.SGD(groups, lr=0.1), lr_ratio)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in tiny.named_parameters():
        is_b = name.endswith("lora_B")
        assert rates.get(id(parameter)) == (
            (0.1 * lr_ratio if is_b else 0.1) if "lora_" in name else None
        )
