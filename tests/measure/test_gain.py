"""What decides: a measure, and how much of a gain may be chance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from lora_mnist.measure.gain import gain, measure, p_value
from lora_mnist.measure.significance import mcnemar

COUNTS = st.lists(st.tuples(*[st.integers(0, 30)] * 3), min_size=2, max_size=6)


@given(COUNTS, st.integers(1, 40))
def test_with_equal_numbers_of_images_both_measures_are_one(counts, images):
    """Of any two repairs they choose the same one."""
    repaired, broken, errors = np.minimum(np.array(counts).T, images)
    per_class = [images] * len(counts)
    both = []
    for choose_by in ("balanced_accuracy", "accuracy"):
        numbers = [*gain(repaired, broken, per_class, choose_by)]
        numbers.append(measure(errors, per_class, choose_by))
        both.append(numbers)
    np.testing.assert_allclose(*both, atol=1e-12)


def test_classes_count_alike_and_one_without_images_has_no_part():
    errors, images = [5, 4, 0], [100, 5, 0]
    assert measure(errors, images, "balanced_accuracy") == pytest.approx((0.95 + 0.2) / 2)
    assert measure(errors, images, "accuracy") == pytest.approx(96 / 105)
    label, predicted = torch.tensor([0] * 100 + [1] * 5), torch.tensor([0] * 95 + [1] * 6 + [0] * 4)
    theirs = multiclass_accuracy(predicted, label, num_classes=2, average="macro")
    assert measure(errors, images, "balanced_accuracy") == pytest.approx(theirs.item())
    saved, deviation = gain([0, 2, 0], [10, 0, 0], images, "balanced_accuracy")
    assert saved == pytest.approx(2 / 10 - 10 / 200)
    assert deviation == pytest.approx((2 / 100 + 10 / 200**2) ** 0.5)
    assert gain([0, 2, 0], [10, 0, 0], images, "accuracy")[0] == pytest.approx(-8 / 105)


def test_deviation_is_that_of_fair_coins():
    generator, images = np.random.default_rng(0), [400, 20]
    changed = np.array([40, 6])
    repaired = generator.binomial(changed, 0.5, size=(20_000, 2))
    saved, deviation = gain(repaired, changed - repaired, images, "balanced_accuracy")
    assert saved.std() == pytest.approx(deviation[0], rel=0.02)


@pytest.mark.parametrize(
    ("repaired", "broken"), [(0, 5), (0, 6), (6, 0), (30, 14), (30, 13), (5, 5)]
)
def test_p_value_with_equal_classes_is_near_mcnemars(repaired, broken):
    exact = mcnemar(repaired, broken)
    near = p_value([repaired, 0], [0, broken], [50, 50], "balanced_accuracy")
    assert near == pytest.approx(exact, rel=0.35)
    assert (near <= 0.05) == (exact <= 0.05)
    assert p_value([1, 0], [0, 9], [2, 200], "balanced_accuracy") > 0.05  # one image of two
