import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist.lora import (
    add_lora,
    load_adapter,
    lora_layers,
    loraplus,
)


@pytest.mark.parametrize("make", [TinyNet, lambda: nn.Sequential(nn.Conv2d(2, 4, 3))])
def test_pissa_starts_at_the_principal_part(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = add_lora(make().double(), rank=2, alpha=5, target_modules=".*", init="pissa")
    for _, layer in lora_layers(net):
        adapter = layer.parametrizations.weight[0]
        matrix = layer.parametrizations.weight.original.flatten(1)
        principal = adapter.scaling * adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
        values = torch.linalg.svdvals(matrix)
        # Eckart and Young: no matrix of rank 2 is nearer.
        assert torch.allclose(torch.linalg.svdvals(principal)[:2], values[:2])
        residual = torch.linalg.svdvals(matrix - principal)
        torch.testing.assert_close(residual[:-2], values[2:])
        assert torch.allclose(residual[-2:], torch.zeros(2, dtype=residual.dtype))


def test_pissa_trains_as_in_peft(tiny: nn.Module, tmp_path: Path) -> None:
    """The same steps from the same start, though the base here is never replaced by a residual."""
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    x = torch.randn(6, 6)
    ours = add_lora(copy.deepcopy(tiny), rank=2, alpha=3.0, init="pissa")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=["linear1", "linear2"]
    )
    theirs = peft.get_peft_model(copy.deepcopy(tiny), config)
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="init_lora_weights=pissa is not supported: .* a base"):
        load_adapter(tiny, tmp_path)


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
