import copy
from pathlib import Path

import pytest
import torch
from helpers.nets import randomize
from torch import nn

from lora_mnist.lora import (
    add_deltas,
    add_lora,
    base_state_dict,
    changed_tensors,
    load_adapter,
    merge_lora,
    remove_lora,
    save_adapter,
    unmerge_lora,
)
from lora_mnist.lora.targets import target_weights
from lora_mnist.lora.weight import adaptable_weights

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm", "orthogonal"])
def test_beside_somebody_elses_parametrization(name: str, tiny: nn.Module, tmp_path: Path) -> None:
    getattr(nn.utils.parametrizations, name)(tiny.linear2)
    plain = copy.deepcopy(tiny.eval())
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    for refused in (lambda: add_lora(tiny), lambda: add_deltas(tiny, "last_layer")):
        with pytest.raises(ValueError, match="linear2: has .* on its weight; exp.*remove_p"):
            refused()
    assert changed_tensors(before, tiny.state_dict()) == []
    adapted = randomize(add_lora(tiny, target_modules=["linear1"]))(X)
    assert changed_tensors(before, base_state_dict(tiny)) == []
    assert torch.equal(load_adapter(plain, save_adapter(tiny, tmp_path))(X), adapted)
    torch.testing.assert_close(merge_lora(tiny)(X), adapted)
    assert torch.equal(unmerge_lora(tiny)(X), adapted)
    assert changed_tensors(before, remove_lora(tiny).state_dict()) == []


def test_an_adapter_on_one_weight_of_a_copied_layer_leaves_the_other_copy_alone() -> None:
    """torch makes one class for a layer and its copies, and keeps the weights' names there."""
    net = add_lora(nn.LSTM(4, 3), target_modules=["weight_ih_l0"])
    twin = copy.deepcopy(net)
    x = torch.randn(5, 2, 4)
    base, _ = net(x)
    randomize(add_lora(twin, target_modules=["weight_hh_l0"]))
    assert not torch.equal(twin(x)[0], base)
    assert torch.equal(remove_lora(twin)(x)[0], base)
    assert torch.equal(net(x)[0], base)
    assert net.weight_ih_l0.shape == (12, 4)  # what forward would not read again


def test_weights_that_cannot_be_adapted_are_no_weights_here() -> None:
    net = nn.ModuleDict({"lazy": nn.LazyLinear(3), "norm": nn.LayerNorm(4), "lin": nn.Linear(2, 2)})
    net["indices"] = nn.ParameterList([nn.Parameter(torch.ones(2, 2).int(), requires_grad=False)])
    assert list(adaptable_weights(net)) == ["norm", "norm.bias", "lin", "lin.bias"]
    assert list(target_weights(net, ".*")) == ["lin"]
