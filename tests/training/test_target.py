"""Which classes a training learns, as they are typed."""

import pytest
import torch

from lora_mnist.errors import UserError
from lora_mnist.training.target import select

DIGITS = [str(digit) for digit in range(10)]


def test_select_takes_classes_by_name():
    """A number is the class that is called so, not the one in its place."""
    for target, classes, expected in (
        (["2", 0, 2], DIGITS, [2, 0]),
        (10, ["1", "10", "2"], [1]),
        ("010", ["001", "010", "8"], [1]),
    ):
        selection = select(torch.arange(len(classes)), classes, target)
        assert selection.targets == expected
        assert selection.learn_indices.tolist() == sorted(expected)
        others = set(range(len(classes))) - set(expected)
        assert selection.replay_indices.tolist() == sorted(others)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target=5: expected a class with training images"),
        ("dog", "target=dog: no class is called dog; there are 0, 1, "),
        (["weakest", 4], r"target=\[weakest,4\]: expected weakest alone"),
        (True, "target=true: no class is called true; .* in quotes"),
        ([10], r"target=\[10\]: no class is called 10; .* stands in quotes: 'target=\"010\"'"),
    ],
)
def test_select_refuses_what_is_no_class_to_learn(target, message):
    with pytest.raises(UserError, match=f"^{message}"):
        select(torch.tensor([9, 9, 1, 2, 3]), DIGITS, target)
