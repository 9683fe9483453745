import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, adapters, dense, randomize
from peft import LoraConfig, get_peft_model
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    load_adapter,
    lora_adapters,
    lora_layers,
    lora_parameters,
    lora_state_dict,
    merge_lora,
    remove_lora,
)


def conv_net(dtype: torch.dtype = torch.float64, **geometry: Any) -> nn.Module:
    """One convolution, 2 to 4 channels, of any geometry."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, **{"kernel_size": 3, **geometry})).to(dtype)


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


@pytest.mark.parametrize("make", [lambda: TinyNet().double(), conv_net])
def test_pissa_starts_at_the_principal_part(make: Any) -> None:
    net = add_lora(make(), rank=2, alpha=5, target_modules=".*", init="pissa")
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


def small_mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(in_features=12, hidden_sizes=[9, 7], num_classes=4)


IMAGES = torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(2))
LINEAR = ["linear1", "linear2", "linear3"]


def test_pissa_trains_as_in_peft(tmp_path: Path) -> None:
    """The same steps from the same start, though the base here is never replaced by a residual."""
    x = IMAGES
    ours = add_lora(small_mlp(), rank=2, alpha=3.0, init="pissa")
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=LINEAR)
    theirs = get_peft_model(small_mlp(), config)
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(
        ValueError, match="init_lora_weights=pissa is not supported: .* a base that"
    ):
        load_adapter(small_mlp(), tmp_path)
