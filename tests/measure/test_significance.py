"""What is chance."""

import numpy as np
import pytest

from lora_mnist.measure.class_weights import MEASURES, class_weights
from lora_mnist.measure.significance import (
    find_weak,
    find_weakest,
    mcnemar,
    p_value_of_accuracy,
    wilson,
)


def test_mcnemar_and_wilson_are_as_published():
    """Fay, vignette of the R package exact2x2; Newcombe 1998, table I, method 3."""
    assert mcnemar(2, 9) == pytest.approx(0.06543, rel=1e-3)
    assert mcnemar(0, 0) == 1
    assert wilson(81, 263) == pytest.approx((0.2553 * 263, 0.3662 * 263), abs=5e-5 * 263)


@pytest.mark.parametrize("name", MEASURES)
def test_the_p_value_of_a_measure_is_that_of_fair_coins(name):
    """So often coins change the measure as much; it is a little cautious."""
    generator, images, changed = np.random.default_rng(0), [4000, 400], np.array([400, 60])
    weights = class_weights(images, name)
    each = weights / images
    saved = np.abs((2 * generator.binomial(changed, 0.5, size=(100_000, 2)) - changed) @ each)
    for mended in (np.array([200, 33]), np.array([240, 36]), np.array([150, 20])):
        share = np.mean(saved >= abs((2 * mended - changed) @ each))
        p_value = p_value_of_accuracy(mended, changed - mended, images, weights)
        assert share - 0.01 < p_value < share + 0.1


@pytest.mark.parametrize(
    ("repaired", "broken"), [(0, 5), (0, 6), (6, 0), (30, 14), (30, 13), (5, 5)]
)
def test_the_p_value_of_a_measure_with_equal_classes_is_near_mcnemars(repaired, broken):
    exact = mcnemar(repaired, broken)
    near = p_value_of_accuracy([repaired, 0], [0, broken], [50, 50], [0.5, 0.5])
    assert near == pytest.approx(exact, rel=0.35)
    assert (near <= 0.05) == (exact <= 0.05)
    assert p_value_of_accuracy([1, 0], [0, 9], [2, 200], [0.5, 0.5]) > 0.05  # one image of two


def test_the_weakest_class_has_the_highest_rate_that_chance_does_not_explain():
    assert find_weakest([34, 2], [200, 8]) == 0  # 2 of 8 may be chance
    assert find_weakest([40, 30, 2], [400, 60, 8]) == 1  # the commonest class has a lower rate
    assert find_weakest([0, 0, 1], [9, 0, 9]) == 2


def test_weak_classes_have_more_errors_than_the_rest_beyond_chance():
    """Also with five images of a class, where so many are wrong."""
    assert list(find_weak([20, 15, 4], [500, 300, 5])) == [2]
    assert list(find_weak([5, 6, 70, 60], [100] * 4)) == [2, 3]
    assert not find_weak([5, 6, 7, 4], [100] * 4)
    assert not find_weak([3, 0], [9, 0])
    assert not find_weak([1, 0, 0, 0], [8] * 4)  # one error has to be somebody's
