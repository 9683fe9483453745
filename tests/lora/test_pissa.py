import copy
from collections.abc import Callable

import pytest
import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist.lora import add_lora, lora_weights


@pytest.mark.parametrize("make", [TinyNet, lambda: nn.Sequential(nn.Conv2d(2, 4, 3))])
def test_it_starts_at_the_principal_part(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = add_lora(make().double(), rank=2, alpha=5, target_modules=".*", init="pissa")
    for weight in lora_weights(net).values():
        (adapter,) = weight.adapters
        matrix = weight.base.flatten(1)
        principal = adapter.scaling * adapter.lora_B.flatten(1) @ adapter.lora_A.flatten(1)
        # Eckart and Young: no matrix of rank 2 is nearer.
        residual = torch.linalg.svdvals(matrix - principal)
        torch.testing.assert_close(residual[:-2], torch.linalg.svdvals(matrix)[2:])


def test_it_trains_as_in_peft(tiny: nn.Module) -> None:
    """The same steps from the same start, though the base here is never replaced by a residual."""
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    x = torch.randn(6, 6)
    base = tiny(x)
    ours = add_lora(copy.deepcopy(tiny), rank=2, alpha=3.0, init="pissa")
    options = {"target_modules": "all-linear", "init_lora_weights": "pissa"}
    theirs = peft.get_peft_model(copy.deepcopy(tiny), peft.LoraConfig(r=2, lora_alpha=3, **options))
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(9):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert not torch.allclose(ours(x), base, atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
