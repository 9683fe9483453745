"""What a class counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

from lora_mnist.measure.class_weights import MEASURES, class_weights, weighted_accuracy

COUNTS = st.lists(st.integers(0, 30), min_size=2, max_size=6)


@given(COUNTS, st.integers(1, 40))
def test_with_equal_numbers_of_images_all_measures_are_one(counts, images):
    errors, per_class = np.minimum(np.array(counts), images), [images] * len(counts)
    every = [
        weighted_accuracy(errors, per_class, class_weights(per_class, name)) for name in MEASURES
    ]
    np.testing.assert_allclose(every, every[0], atol=1e-12)


def measured(errors, images, test_prior=None):
    """Each measure of some errors, by its name."""
    weights = {
        name: class_weights(images if test_prior is None else test_prior, name) for name in MEASURES
    }
    return {name: weighted_accuracy(errors, images, weights[name]) for name in MEASURES}


def test_what_a_class_counts_follows_the_tests_mix_by_half():
    errors, images = [5, 4, 0], [100, 5, 0]
    values = measured(errors, images)
    assert values["accuracy"] == pytest.approx(96 / 105)
    label, predicted = torch.tensor([0] * 100 + [1] * 5), torch.tensor([0] * 95 + [1] * 6 + [0] * 4)
    theirs = multiclass_accuracy(predicted, label, num_classes=2, average="macro")
    assert values["balanced_accuracy"] == pytest.approx(theirs.item())
    whole = measured([5, 4], [100, 5])
    assert whole["mean_accuracy"] == pytest.approx((96 / 105 + theirs.item()) / 2)
    # Validation images have another class distribution than the test, and none of the last class.
    of_test = measured(errors, images, [10, 30, 60])
    assert of_test["accuracy"] == pytest.approx((10 * 0.95 + 30 * 0.2) / 40)
    assert of_test["balanced_accuracy"] == values["balanced_accuracy"]
    weights = np.array([10, 30]) / 200 + 1 / 6
    assert of_test["mean_accuracy"] == pytest.approx(weights @ [0.95, 0.2] / weights.sum())
    for name in MEASURES:
        assert class_weights([10, 30, 60], name).sum() == pytest.approx(1)
        assert class_weights([0, 0, 0], name) == pytest.approx([1 / 3] * 3)  # no test image is here
