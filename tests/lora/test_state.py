import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist.lora import add_lora, base_state_dict, lora_state_dict


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
    for _ in range(2):
        add_lora(net, target_modules=".*")
        after = base_state_dict(net)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
    fresh = Shared()
    fresh.load_state_dict(base_state_dict(net))


def test_the_two_parts_are_the_whole() -> None:
    net = add_lora(
        add_lora(Shared(), target_modules=".*"), target_modules=["linear2"], init="pissa"
    )
    parts = {**lora_state_dict(net), **base_state_dict(net)}
    assert len(parts) == len(net.state_dict())
    assert set(lora_state_dict(net)) == {
        key for key in net.state_dict() if key.rpartition(".")[2] in SIDES
    }
    assert not lora_state_dict(Shared())


SIDES = {"lora_A", "lora_B", "start_A", "start_B"}


def test_the_tensors_are_those_of_the_network(tiny: nn.Module) -> None:
    weight = tiny.linear1.weight
    assert base_state_dict(add_lora(tiny))["linear1.weight"].data_ptr() == weight.data_ptr()
