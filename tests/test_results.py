"""What is proven of a training, and what is said of it."""

import pytest

from lora_mnist.results import useless


@pytest.mark.parametrize(
    ("before", "after", "is_useless"),
    [(0.9, 0.8, False), (0.9, 0.6, True), (0.6, 0.6, False), (None, 0.6, True)],
)
def test_what_always_says_the_same_class_is_useless_if_its_base_was_not(before, after, is_useless):
    images = {"images_per_class": [60, 40]}
    base = None if before is None else {"accuracy": before, **images}
    reason = useless({"accuracy": after, **images}, base, ["cat", "dog"])
    assert (reason is not None) == is_useless
    if is_useless:
        assert reason == "60.0% are right, no more than by always saying cat"
