"""Which classes a training learns, as they are named."""

from types import SimpleNamespace

import pytest
import torch
from helpers.runs import at, make_table

from lora_mnist.errors import UserError
from lora_mnist.training.target import choose_target, select_images

DIGITS = [str(digit) for digit in range(10)]


def test_select_takes_classes_by_name():
    """A number is the class that is called so, not the one in its place."""
    for target, classes, expected in (
        (["2", 0, 2], DIGITS, [2, 0]),
        (10, ["1", "10", "2"], [1]),
        ("010", ["001", "010", "8"], [1]),
    ):
        selection = select_images(torch.arange(len(classes)), classes, target)
        assert selection.targets == expected
        assert selection.learn_indices.tolist() == sorted(expected)
        others = set(range(len(classes))) - set(expected)
        assert selection.replay_indices.tolist() == sorted(others)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target=5: expected classes with training images"),
        ("dog", "target=dog: no class has the name dog; there are 0, 1, "),
        (["weakest", 4], r"target=\[weakest,4\]: expected weakest alone"),
        (True, "target=true: no class has the name true; .* in quotes"),
        (11, "target=11: no class has the name 11; there are 0, 1, "),  # 1 is not near
        ([10], r"target=\[10\]: no class has the name 10; .* stands in quotes: 'target=\"010\"'"),
    ],
)
def test_select_refuses_what_is_no_class_to_learn(target, message):
    with pytest.raises(UserError, match=f"^{message}"):
        select_images(torch.tensor([9, 9, 1, 2, 3]), DIGITS, target)


def test_the_weakest_of_numbered_classes_is_repaired():
    """Its name, 10, is that of a class, and its place, 1, the name of another."""
    label = torch.tensor([0] * 9 + [1] * 9 + [2] * 9)
    before = make_table(3, label, torch.where(label == 1, 0, label))
    train = SimpleNamespace(labels=torch.tensor([0, 1, 2, 1]))
    session = SimpleNamespace(
        cfg=SimpleNamespace(target="weakest"),
        images=SimpleNamespace(train=train),
        classifier=SimpleNamespace(classes=["1", "10", "2"]),
        mistakes=None,
    )
    selection, choices = choose_target(session, before)
    assert choices["target"].value == ["10"]
    assert choices["target"].reasons[0].facts["unseen"] == []
    selection, choices = choose_target(session, at(before, label > 0))
    assert choices["target"].reasons[0].facts["unseen"] == ["1"]
    assert (selection.targets, selection.learn_indices.tolist()) == ([1], [1, 3])
