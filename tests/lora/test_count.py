from helpers.nets import TinyNet
from torch import nn

from lora_mnist import add_lora, trainable_parameters
from lora_mnist.lora import count_parameters


def test_counts_of_a_base(tiny: TinyNet) -> None:
    assert count_parameters(tiny) == {
        **{"base": 53, "lora": 0, "trainable": 53, "increase_percent": 0.0}
    }
    assert trainable_parameters(tiny) == "parameters: 53; trainable: 53"


def test_counts_of_an_adapted_network(tiny: TinyNet) -> None:
    add_lora(tiny, rank=2, target_modules="linear1")
    assert count_parameters(tiny) == {
        **{"base": 53, "lora": 22, "trainable": 22, "increase_percent": 41.509}
    }
    assert trainable_parameters(tiny) == (
        "parameters: 53 + 22 of LoRA = 75, increase 41.509%; trainable: 22"
    )


def test_large_numbers_are_readable() -> None:
    assert trainable_parameters(nn.Linear(2000, 1000)) == (
        "parameters: 2,001,000; trainable: 2,001,000"
    )
