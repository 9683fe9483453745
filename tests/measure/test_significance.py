"""What counts, and what is chance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from lora_mnist.measure.significance import (
    chance_text,
    mcnemar,
    p_value_of_measure,
    weak,
    weakest,
    wilson,
)
from lora_mnist.measure.weights import MEASURES, class_weights, measure

COUNTS = st.lists(st.integers(0, 30), min_size=2, max_size=6)


def test_mcnemar_and_wilson_are_as_published():
    """Fay, vignette of the R package exact2x2; Newcombe 1998, table I, method 3."""
    assert mcnemar(2, 9) == pytest.approx(0.06543, rel=1e-3)
    assert mcnemar(0, 0) == 1
    assert wilson(81, 263) == pytest.approx((0.2553 * 263, 0.3662 * 263), abs=5e-5 * 263)


@given(COUNTS, st.integers(1, 40))
def test_with_equal_numbers_of_images_all_measures_are_one(counts, images):
    errors, per_class = np.minimum(np.array(counts), images), [images] * len(counts)
    every = [measure(errors, per_class, class_weights(per_class, name)) for name in MEASURES]
    np.testing.assert_allclose(every, every[0], atol=1e-12)


def measured(errors, images, mix=None):
    """Each measure of some errors, by its name."""
    weights = {name: class_weights(images if mix is None else mix, name) for name in MEASURES}
    return {name: measure(errors, images, weights[name]) for name in MEASURES}


def test_what_a_class_counts_follows_the_tests_mix_by_half():
    errors, images = [5, 4, 0], [100, 5, 0]
    values = measured(errors, images)
    assert values["accuracy"] == pytest.approx(96 / 105)
    label, predicted = torch.tensor([0] * 100 + [1] * 5), torch.tensor([0] * 95 + [1] * 6 + [0] * 4)
    theirs = multiclass_accuracy(predicted, label, num_classes=2, average="macro")
    assert values["balanced_accuracy"] == pytest.approx(theirs.item())
    whole = measured([5, 4], [100, 5])
    assert whole["mean_accuracy"] == pytest.approx((96 / 105 + theirs.item()) / 2)
    # Validation images have another mix than the test, and none of the last class.
    of_test = measured(errors, images, [10, 30, 60])
    assert of_test["accuracy"] == pytest.approx((10 * 0.95 + 30 * 0.2) / 40)
    assert of_test["balanced_accuracy"] == values["balanced_accuracy"]
    weights = np.array([10, 30]) / 200 + 1 / 6
    assert of_test["mean_accuracy"] == pytest.approx(weights @ [0.95, 0.2] / weights.sum())
    for name in MEASURES:
        assert class_weights([10, 30, 60], name).sum() == pytest.approx(1)
        assert class_weights([0, 0, 0], name) == pytest.approx([1 / 3] * 3)  # no test image is here


@pytest.mark.parametrize("name", MEASURES)
def test_the_p_value_of_a_measure_is_that_of_fair_coins(name):
    """So often coins change the measure as much; it is a little cautious."""
    generator, images, changed = np.random.default_rng(0), [4000, 400], np.array([400, 60])
    weights = class_weights(images, name)
    each = weights / images
    saved = np.abs((2 * generator.binomial(changed, 0.5, size=(100_000, 2)) - changed) @ each)
    for mended in (np.array([200, 33]), np.array([240, 36]), np.array([150, 20])):
        share = np.mean(saved >= abs((2 * mended - changed) @ each))
        p_value = p_value_of_measure(mended, changed - mended, images, weights)
        assert share - 0.01 < p_value < share + 0.1


@pytest.mark.parametrize(
    ("repaired", "broken"), [(0, 5), (0, 6), (6, 0), (30, 14), (30, 13), (5, 5)]
)
def test_the_p_value_of_a_measure_with_equal_classes_is_near_mcnemars(repaired, broken):
    exact = mcnemar(repaired, broken)
    near = p_value_of_measure([repaired, 0], [0, broken], [50, 50], [0.5, 0.5])
    assert near == pytest.approx(exact, rel=0.35)
    assert (near <= 0.05) == (exact <= 0.05)
    assert p_value_of_measure([1, 0], [0, 9], [2, 200], [0.5, 0.5]) > 0.05  # one image of two


def test_the_weakest_class_has_the_highest_rate_that_chance_does_not_explain():
    assert weakest([34, 2], [200, 8]) == 0  # 2 of 8 may be chance
    assert weakest([40, 30, 2], [400, 60, 8]) == 1  # the commonest class has a lower rate
    assert weakest([0, 0, 1], [9, 0, 9]) == 2


def test_chance_text_never_rounds_a_difference_to_significance():
    assert chance_text(1e-9) == "p < 0.001"
    assert chance_text(0.05) == "p = 0.05"
    assert chance_text(0.0500001) == "may be chance, p = 0.0500001"


def test_weak_classes_have_more_errors_than_the_rest_beyond_chance():
    """Also with five images of a class, where so many are wrong."""
    assert list(weak([20, 15, 4], [500, 300, 5])) == [2]
    assert list(weak([5, 6, 70, 60], [100] * 4)) == [2, 3]
    assert not weak([5, 6, 7, 4], [100] * 4)
    assert not weak([3, 0], [9, 0])
    assert not weak([1, 0, 0, 0], [8] * 4)  # one error has to be somebody's
