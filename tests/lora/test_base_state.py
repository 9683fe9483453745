import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    changed_tensors,
    fingerprint,
    lora_state_dict,
)


class Shared(nn.Module):
    """One layer under two names, a buffer, and a weight that is not called so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TinyNet()
        self.again = self.first.linear1
        self.norm = nn.BatchNorm1d(3)
        self.rnn = nn.GRU(3, 2)


def test_the_base_has_its_own_names_and_its_buffers() -> None:
    net = Shared()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for init in ("gaussian", "pissa"):
        add_lora(net, target_modules=".*", init=init)
        assert base_state_dict(net).keys() == before.keys()
        assert changed_tensors(before, base_state_dict(net)) == []
        both = {**lora_state_dict(net), **base_state_dict(net)}
        assert len(both) == len(net.state_dict())
    assert {key.rpartition(".")[2] for key in lora_state_dict(net)} == {
        *("lora_A", "lora_B", "start_A", "start_B")
    }
    assert not lora_state_dict(Shared())
    Shared().load_state_dict(base_state_dict(net))


def test_fingerprint_sees_every_difference() -> None:
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        (state, []),
        ({**state, "a": torch.tensor([-0.0, 1.0])}, ["a"]),
        ({**state, "a": state["a"].flip(0)}, ["a"]),
        ({**state, "b": torch.ones(3, 2)}, ["b"]),
        ({**state, "a": state["a"].double()}, ["a"]),
        ({"a": state["a"], "c": state["b"]}, ["b", "c"]),
        ({"a": state["a"]}, ["b"]),
    ]
    assert len({fingerprint(variant) for variant, _ in variants}) == len(variants)
    for variant, changed in variants:
        assert changed_tensors(state, variant) == changed
    reversed_copy = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert fingerprint(reversed_copy) == fingerprint(state)
    # The name of a base on disk, in adapters and in results: the same for ever.
    assert fingerprint({"a": torch.arange(3)})[:12] == "28eb18b5aab3"
