"""The laws of adapters, on every kind of layer."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.nets import NETWORKS, made
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    load_adapter,
    lora_disabled,
    lora_parameters,
    lora_weights,
    merge_lora,
    remove_lora,
    save_adapter,
    set_lora_scale,
    sum_adapters,
    unmerge_lora,
)
from lora_mnist.lora.weight import adaptable_weights


def outputs(net: nn.Module, x: torch.Tensor, grad: bool = False) -> torch.Tensor:
    with torch.set_grad_enabled(grad):
        return net(x).detach()


@pytest.mark.filterwarnings("ignore:PEFT has no adapter")
@pytest.mark.parametrize("name", NETWORKS)
def test_laws_of_two_adapters(name: str, tmp_path: Path) -> None:
    """Switched off they are the base, which training does not move; merged, summed and loaded
    they compute the same.
    """
    net, x = made(name)
    # torch's attention takes another kernel where none of its weights asks for a gradient.
    net.requires_grad_(False)
    base = {grad: outputs(net, x, grad) for grad in (False, True)}
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plain = copy.deepcopy(net)
    options = {"target_modules": ".*", "use_rslora": True}
    add_lora(net, init="pissa", name="first", **options)
    torch.testing.assert_close(outputs(net, x), base[False], rtol=1e-4, atol=1e-6)
    add_lora(net, rank=2, init_std=0.05, name="second", **options)
    for parameter in lora_parameters(net):
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(list(lora_parameters(net)), lr=0.01)
    for _ in range(3):
        for mode in (False, True):
            net.train(mode)
            with lora_disabled(net):
                for grad in (False, True):
                    assert torch.equal(outputs(net, x, grad), base[grad])
        optimizer.zero_grad()
        net(x).square().mean().backward()
        assert all(p.grad is not None for p in lora_parameters(net))
        optimizer.step()
    assert changed_tensors(state, base_state_dict(net)) == []

    set_lora_scale(net, 0.7, "first")
    set_lora_scale(net, -0.3, "second")
    adapted = outputs(net, x)
    assert not torch.equal(adapted, base[False])
    close = {"rtol": 1e-4, "atol": 1e-5 * float(adapted.abs().max())}
    dense = copy.deepcopy(plain)
    for layer, weight in lora_weights(net).items():
        effective = getattr(weight.module, weight.tensor).detach()
        adaptable_weights(dense)[layer].base.data = effective
    torch.testing.assert_close(outputs(dense, x), adapted, **close)
    merged = merge_lora(copy.deepcopy(net))
    torch.testing.assert_close(outputs(merged, x), adapted, **close)
    assert merged.state_dict().keys() == state.keys()
    assert changed_tensors(net.state_dict(), unmerge_lora(merged).state_dict()) == []
    assert torch.equal(outputs(merged, x), adapted)
    loaded = copy.deepcopy(plain)
    for each, scale in (("first", 0.7), ("second", -0.3)):
        load_adapter(loaded, save_adapter(net, tmp_path / each, each), scale=scale)
    torch.testing.assert_close(outputs(loaded, x), adapted, **close)
    torch.testing.assert_close(outputs(sum_adapters(loaded), x), adapted, **close)
    set_lora_scale(net, 0)
    assert torch.equal(outputs(net, x), base[False])
    assert torch.equal(outputs(remove_lora(net), x), base[False])
    assert changed_tensors(state, net.state_dict()) == []
