"""The same numbers on every way through torch: compiled, exported, in half, on another device."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import made, randomize
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from lora_mnist.lora import (
    add_lora,
    lora_disabled,
    lora_parameters,
    lora_state_dict,
    merge_lora,
    save_adapter,
    set_lora_enabled,
    set_lora_scale,
    unmerge_lora,
)

KINDS = [
    "linear",
    "conv1d",
    "convolutions",
    "grouped",
    "transposed",
    "attention_to_others",
    "embedding",
]
kinds = pytest.mark.parametrize("kind", KINDS)


def adapted(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """Two adapters of different ranks, one turned down and one negative."""
    net, x = made(kind)
    add_lora(net, rank=2, alpha=3.0, target_modules=".*", name="first", use_rslora=True)
    add_lora(net, rank=1, target_modules=".*", name="second", init="pissa")
    randomize(net)
    set_lora_scale(net, 0.7, "first")
    set_lora_scale(net, -0.3, "second")
    return net, x


@kinds
def test_half_precision(kind: str) -> None:
    """bfloat16 has eight bits, and so does a network that is merged or cast in it."""
    net, x = adapted(kind)
    expected = net(x)
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
        assert torch.equal(unmerge_lora(net)(half), output)


def test_compiled() -> None:
    """A compiled network hears of every switch and scale."""
    torch.compiler.reset()
    net, x = adapted("linear")
    compiled = torch.compile(net, backend="eager")
    for change in (
        lambda: set_lora_scale(net, 0.5, "first"),
        lambda: set_lora_enabled(net, False, "second"),
        lambda: merge_lora(net),
        lambda: unmerge_lora(net),
    ):
        change()
        torch.testing.assert_close(compiled(x), net(x))


@kinds
def test_exported_and_checkpointed(kind: str) -> None:
    net, x = adapted(kind)
    expected = net(x)
    with torch.no_grad():
        exported = torch.export.export(net, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
    parameters = [p for p in lora_parameters(net) if p.requires_grad]
    output: Any = checkpoint(net, x, use_reentrant=False)
    of_output = torch.autograd.grad(output.square().sum(), parameters)
    of_expected = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(map(torch.equal, of_output, of_expected))


@pytest.mark.parametrize("kind", ["linear", "convolutions", "attention_to_others"])
def test_many_adapters_at_once_and_the_gradients_of_single_images(kind: str) -> None:
    """``torch.func``: vmap over the adapters of one base, and over a batch."""
    close = {"rtol": 1e-12, "atol": 1e-12}
    net, x = made(kind, torch.float64)
    add_lora(net, rank=2, target_modules=".*")
    states = [lora_state_dict(copy.deepcopy(randomize(net))) for _ in range(3)]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    outputs = vmap(lambda state: functional_call(net, state, (x,)))(stacked)
    for state, output in zip(states, outputs, strict=True):
        torch.testing.assert_close(functional_call(net, state, (x,)), output, **close)

    def loss(state: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return functional_call(net, state, (one[None],)).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(states[0], x)
    for number, one in enumerate(x):
        for key, gradient in grad(loss)(states[0], one).items():
            torch.testing.assert_close(gradients[key][number], gradient, **close)


@kinds
def test_the_numbers_follow_the_network_to_its_device(kind: str, tmp_path: Path) -> None:
    """The meta device holds no numbers, and refuses to mix with the CPU, as a GPU does."""
    net, x = adapted(kind)
    shape = net(x).shape
    net, x = net.to("meta"), x.to("meta")
    net.train()(x).sum().backward()
    assert all(p.grad.is_meta for p in lora_parameters(net) if p.requires_grad)
    with pytest.raises(ValueError, match="expected numbers, found a lazy tensor or the meta dev"):
        save_adapter(net, tmp_path / "adapter", "first")
    assert not (tmp_path / "adapter").exists()
    with lora_disabled(net):
        assert net(x).shape == shape
    for change in (merge_lora, unmerge_lora):
        assert change(net)(x).shape == shape
