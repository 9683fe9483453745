import copy

import pytest
import torch
from helpers.nets import randomize
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    load_adapter,
    merge_lora,
    remove_lora,
    save_adapter,
    unmerge_lora,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["spectral_norm", "weight_norm", "orthogonal"])
def test_beside_somebody_elses_parametrization(name, tiny, tmp_path):
    getattr(nn.utils.parametrizations, name)(tiny.linear2)
    plain = copy.deepcopy(tiny.eval())
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    with pytest.raises(ValueError, match="linear2: has .* on its weight; exp.*remove_p"):
        add_lora(tiny)
    assert changed_tensors(before, tiny.state_dict()) == []
    adapted = randomize(add_lora(tiny, target_modules=["linear1"]))(X)
    assert changed_tensors(before, base_state_dict(tiny)) == []
    assert torch.equal(load_adapter(plain, save_adapter(tiny, tmp_path))(X), adapted)
    torch.testing.assert_close(merge_lora(tiny)(X), adapted)
    assert torch.equal(unmerge_lora(tiny)(X), adapted)
    assert changed_tensors(before, remove_lora(tiny).state_dict()) == []


def test_an_adapter_on_one_weight_of_a_copied_layer_leaves_the_other_copy_alone():
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


class Tied(nn.Module):
    """Words in and out share one weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mid = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize("target_modules", ["all", ["embed"]])
def test_a_weight_that_two_layers_share_is_refused(target_modules):
    net = Tied()
    with pytest.raises(ValueError, match="target_modules: embed and out share one weight"):
        add_lora(net, target_modules=target_modules)
    assert all(parameter.requires_grad for parameter in net.parameters())
    add_lora(net, target_modules=["mid"])


@pytest.mark.parametrize("wrapper", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_refused_before_training(wrapper, tiny, tmp_path):
    """The names of its layers would stand in the adapter, which then fits no other network."""
    wrapped = wrapper(tiny)
    refusal = f"{type(wrapped).__name__}: expected the network inside this wrapper"
    with pytest.raises(ValueError, match=refusal):
        add_lora(wrapped)
    adapted = wrapper(add_lora(tiny))
    with pytest.raises(ValueError, match=refusal):
        save_adapter(adapted, tmp_path)
    with pytest.raises(ValueError, match=refusal):
        load_adapter(wrapper(nn.Linear(2, 2)), save_adapter(tiny, tmp_path))
