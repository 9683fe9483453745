"""The laws of adapters, on every kind of layer, in half precision and on another device."""

import copy
import re

import pytest
import torch
from helpers.nets import NETWORKS, made, randomize

from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import (
    KINDS,
    add_lora,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.lora.target_modules import layers_to_adapt


def outputs(net, x, grad=False):
    with torch.set_grad_enabled(grad):
        return net(x).detach()


@pytest.mark.filterwarnings("ignore:PEFT has no adapter")
@pytest.mark.parametrize("init", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_laws_of_adapters(name, init, tmp_path):
    """Two of them, switched off, are the base, which training does not move.

    Merged they are no other, and what is saved is what was there. On another layer than those that
    a kind takes, it is refused.
    """
    net, x = made(name)
    layers = layers_to_adapt(net, ".*").items()
    taken = [layer for layer, weight in layers if KINDS[init].peft_names(weight.module)]
    own = {"target_modules": "|".join(map(re.escape, taken)), "init": init, "use_rslora": True}
    if len(taken) < len(layers):
        with pytest.raises(ValueError, match="takes no weight of"):
            add_lora(net, init=init, target_modules=".*")
    if not taken:
        return
    # torch's attention takes another kernel where none of its weights asks for a gradient.
    net.requires_grad_(False)
    base = {grad: outputs(net, x, grad) for grad in (False, True)}
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plain = copy.deepcopy(net)
    add_lora(net, **own)
    torch.testing.assert_close(outputs(net, x), base[False], rtol=1e-4, atol=1e-6)
    add_lora(net, rank=2, init_std=0.05, target_modules=".*", use_rslora=True)
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

    set_lora_scale(net, 0.7)
    adapted = outputs(net, x)
    assert not torch.equal(adapted, base[False])
    close = {"rtol": 1e-4, "atol": 1e-5 * float(adapted.abs().max())}
    merged = merge_lora(copy.deepcopy(net))
    torch.testing.assert_close(outputs(merged, x), adapted, **close)
    assert merged.state_dict().keys() == state.keys()
    assert changed_tensors(net.state_dict(), unmerge_lora(merged).state_dict()) == []
    assert torch.equal(outputs(merged, x), adapted)
    set_lora_scale(net, 0)
    assert torch.equal(outputs(net, x), base[False])
    assert torch.equal(outputs(remove_lora(net), x), base[False])
    assert changed_tensors(state, net.state_dict()) == []

    randomize(add_lora(net, **own))
    set_lora_scale(net, 0.7)
    adapted, loaded = outputs(net, x), load_adapter(plain, save_adapter(net, tmp_path))
    close["atol"] = 1e-5 * float(adapted.abs().max())
    torch.testing.assert_close(outputs(loaded, x), adapted, **close)


@pytest.mark.parametrize(
    ("kind", "init"),
    [
        *[(kind, "gaussian") for kind in ("embedding", "attention_to_others")],
        *[
            (kind, init)
            for kind in ("linear", "convolutions", "conv1d")
            for init in ("gaussian", "dora")
        ],
    ],
)
def test_adapters_in_half_precision_and_on_another_device(kind, init, tmp_path):
    """bfloat16 has eight bits, and so does a network that is merged or cast in it.

    The meta device holds no numbers, and refuses to mix with the CPU, as a GPU does.
    """
    net, x = made(kind)
    add_lora(net, rank=2, alpha=3.0, target_modules=".*", init=init, use_rslora=True)
    randomize(net)
    set_lora_scale(net, 0.7)
    expected, elsewhere = net(x), copy.deepcopy(net).to("meta")
    near = {"rtol": 0.05, "atol": 0.05 * float(expected.detach().abs().max())}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(x)
        cast.float().sum().backward()
    assert all(p.grad is not None for p in lora_parameters(net) if p.requires_grad)
    torch.testing.assert_close(cast.float(), expected, **near)
    half = x.bfloat16() if x.is_floating_point() else x
    with torch.no_grad():
        output = net.bfloat16()(half)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, **near)
        torch.testing.assert_close(merge_lora(net)(half).float(), expected, **near)
    x = x.to("meta")
    elsewhere.train()(x).sum().backward()
    assert all(p.grad.is_meta for p in lora_parameters(elsewhere) if p.requires_grad)
    with pytest.raises(NotImplementedError, match="meta tensor; no data"):
        save_adapter(elsewhere, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with lora_disabled(elsewhere):
        assert elsewhere(x).shape == expected.shape
    for change in (merge_lora, unmerge_lora):
        assert change(elsewhere)(x).shape == expected.shape
