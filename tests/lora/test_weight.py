import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import dense, randomize
from torch import nn
from torch.nn.utils import parametrize

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    has_lora,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_scale,
)
from lora_mnist.lora.model import lora_weights
from lora_mnist.lora.weight import adaptable_weights


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


def test_the_base_keeps_its_names_under_somebody_elses_parametrization(tiny: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(tiny.linear1)
    nn.utils.parametrizations.spectral_norm(tiny.linear2)
    before = {name: tensor.clone() for name, tensor in tiny.eval().state_dict().items()}
    x = torch.randn(4, 6)
    base = tiny(x)
    adapted = randomize(add_lora(tiny))(x)
    assert not torch.allclose(adapted, base)
    torch.testing.assert_close(adapted, dense(tiny, x))
    assert changed_tensors(before, base_state_dict(tiny)) == []
    torch.testing.assert_close(merge_lora(tiny)(x), adapted)


class Shifted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_a_subclass_with_its_own_forward_keeps_it() -> None:
    layer = Shifted(3, 2)
    x = torch.randn(4, 3)
    base = layer(x)
    add_lora(layer, target_modules="")
    assert torch.equal(layer(x), base)
    randomize(layer)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) + 1)


class Attention(nn.Module):
    """Self-attention, or attention to something of another size."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.kdim = kdim
        self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = x if self.kdim is None else x[..., : self.kdim]
        return self.attention(x, other, other)[0]


class First(nn.Module):
    """What a recurrent layer gives at first, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        return output if isinstance(output, torch.Tensor) else output[0]


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


KINDS = {
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), lambda: torch.arange(6).view(2, 3)),
    "embedding_bag": (lambda: nn.EmbeddingBag(7, 4), lambda: torch.arange(6).view(2, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, padding=1), lambda: floats(2, 3, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), lambda: floats(2, 2, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: floats(2, 4, 5, 5)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        lambda: floats(2, 4, 5, 5),
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 3, 2), lambda: floats(2, 4, 5)),
    "attention": (Attention, lambda: floats(2, 3, 8)),
    "attention_to_others": (lambda: Attention(kdim=5), lambda: floats(2, 3, 8)),
    "rnn": (lambda: First(nn.RNN(4, 3)), lambda: floats(5, 2, 4)),
    "lstm": (lambda: First(nn.LSTM(4, 6, 2, bidirectional=True)), lambda: floats(5, 2, 4)),
    "lstm_projected": (lambda: First(nn.LSTM(4, 6, proj_size=2)), lambda: floats(5, 2, 4)),
    "gru_cell": (lambda: nn.GRUCell(4, 6), lambda: floats(5, 4)),
}


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_weight(kind: str, init: str) -> None:
    """Enabled equals the effective weights; off equals base; merged and removed accordingly."""
    torch.manual_seed(0)
    make, inputs = KINDS[kind]
    net, x = make().double(), inputs()
    plain = copy.deepcopy(net)
    base = net(x)
    add_lora(net, rank=2, alpha=3, target_modules=".*", init=init)
    weights = lora_weights(net)
    assert len(weights) == sum(p.ndim >= 2 for p in plain.parameters())
    torch.testing.assert_close(net(x), base, rtol=1e-12, atol=1e-12)
    randomize(net)
    for weight, original in zip(
        weights.values(), (p for p in plain.parameters() if p.ndim >= 2), strict=True
    ):
        original.data = getattr(weight.module, weight.tensor).detach()
    for mode in (True, False):
        adapted = net.train(mode)(x)
        torch.testing.assert_close(adapted, plain(x), rtol=1e-12, atol=1e-12)
        with lora_disabled(net):
            assert torch.equal(net(x), base)
        with torch.inference_mode():
            torch.testing.assert_close(net(x), adapted, rtol=1e-10, atol=1e-10)
    set_lora_scale(net, 0)
    assert torch.equal(net(x), base)
    set_lora_scale(net, 0.5)
    half = net(x)
    torch.testing.assert_close(merge_lora(copy.deepcopy(net))(x), half, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(half, adapted)
    set_lora_scale(net, 1)
    assert not torch.allclose(adapted, base)
    ours = torch.autograd.grad(net(x).square().sum(), list(lora_parameters(net)))
    assert all(gradient.isfinite().all() for gradient in ours)
    assert any(gradient.any() for gradient in ours)
    twin = copy.deepcopy(net)
    merged = merge_lora(copy.deepcopy(net))
    torch.testing.assert_close(merged(x), adapted, rtol=1e-12, atol=1e-12)
    # It stays frozen, and torch's attention rounds otherwise where nothing requires a gradient.
    assert torch.equal(remove_lora(net).requires_grad_()(x), base)
    torch.testing.assert_close(twin(x), adapted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("net", "target_modules", "named"),
    [
        (lambda: Attention(), "all", "attention.out_proj"),
        (lambda: Attention(), ["in_proj_weight"], "attention.in_proj_weight"),
        (lambda: First(nn.LSTM(4, 3)), ["weight_hh_l0"], "layer.weight_hh_l0"),
        (lambda: nn.Sequential(nn.Embedding(4, 3)), ["0"], "0"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), ["0"], "0"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding_mode="reflect")), "all", "0"),
        (lambda: nn.Sequential(Shifted(3, 2)), "all", "0"),
    ],
)
def test_dropout_is_refused_where_it_would_do_nothing(
    net: Callable[[], nn.Module], target_modules: Any, named: str
) -> None:
    message = f"dropout: {named} has a forward of its own; expected dropout=0"
    with pytest.raises(ValueError, match=message):
        add_lora(net(), target_modules=target_modules, dropout=0.1)


def test_an_adapter_on_one_weight_of_a_copied_layer_leaves_the_other_copy_alone() -> None:
    """torch makes one class for a layer and its copies, and keeps the weights' names there."""
    net = add_lora(First(nn.LSTM(4, 3)), target_modules=["weight_ih_l0"])
    twin = copy.deepcopy(net)
    x = torch.randn(5, 2, 4)
    base = net(x)
    randomize(add_lora(twin, target_modules=["weight_hh_l0"]))
    assert not torch.equal(twin(x), base)
    assert torch.equal(net(x), base)
    assert torch.equal(remove_lora(twin)(x), base)
    assert torch.equal(net(x), base)


def test_weights_that_cannot_be_adapted_are_no_weights_here() -> None:
    net = nn.ModuleDict({"lazy": nn.LazyLinear(3), "norm": nn.LayerNorm(4), "lin": nn.Linear(2, 2)})
    net["indices"] = nn.ParameterList([nn.Parameter(torch.ones(2, 2).int(), requires_grad=False)])
    assert list(adaptable_weights(net)) == ["lin"]
