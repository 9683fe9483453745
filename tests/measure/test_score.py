"""The score, which decides."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_mnist.lora.offset import Offset
from lora_mnist.measure.class_weights import MEASURES, class_weights
from lora_mnist.measure.scale_curve import offsets_to_try
from lora_mnist.measure.score import compute_scores, fit_temperature


@given(st.data())
def test_where_a_network_is_sure_the_score_is_the_measure_with_one_image_more(data):
    """And no image counts more than that, however sure the network is."""
    numbers = st.integers(0, 2)
    labels = torch.tensor([0, 1, 2, *data.draw(st.lists(numbers, max_size=30))])
    predicted = torch.tensor([data.draw(numbers) for _ in labels])
    logits = 1000.0 * torch.nn.functional.one_hot(predicted, 3)
    images = labels.bincount(minlength=3)
    errors = labels[predicted != labels].bincount(minlength=3)
    for name in MEASURES:
        weights = class_weights([5, 1, 3], name)
        (score,) = compute_scores(logits, labels, torch.zeros(3), [0.0], weights)
        unknown = (1 / 3) ** 0.25
        expected = weights @ ((images - errors + unknown) / (images + 1)).double().numpy()
        assert score.item() == pytest.approx(float(expected))
        (of_outlier,) = compute_scores(1000 * logits, labels, torch.zeros(3), [0.0], weights)
        assert of_outlier.item() == pytest.approx(score.item())


@given(st.integers(0, 999), st.floats(0.4, 2.5))
def test_it_does_not_matter_how_sure_a_network_is(seed, factor):
    """With ``factor`` times the logits and the offset all scores are the same, in each class."""
    torch.manual_seed(seed)
    labels = torch.arange(4).repeat(8)
    logits = 1.5 * torch.randn(32, 4) + torch.nn.functional.one_hot(labels, 4)
    direction, offsets = torch.tensor([0.0, 1, 0, -0.3]), torch.tensor([0.0, 0.5, -2])
    assume(0.5 < fit_temperature(logits, labels) < 3)  # it has bounds
    weights = class_weights([3, 1, 1, 1], "mean_accuracy")
    scores = compute_scores(logits, labels, direction, offsets.tolist(), weights)
    scaled = compute_scores(
        factor * logits, labels, direction, (factor * offsets).tolist(), weights
    )
    torch.testing.assert_close(scaled, scores, rtol=0, atol=1e-4)


def test_a_class_whose_few_images_are_all_right_bounds_an_offset():
    """Each of them is certain, so that nothing they show speaks against any offset."""
    labels = torch.tensor([0] * 40 + [1] * 7)
    logits = torch.stack([torch.where(labels == 0, 2.0, 0.0), torch.where(labels == 1, 20.0, 0)], 1)
    logits[:20, 1] = 2.5  # half of the other class are called as this one
    direction, offsets = torch.tensor([0.0, 1]), offsets_to_try(Offset(torch.tensor([0.0, 1])))
    weights = class_weights([1, 1], "balanced_accuracy")
    scores = compute_scores(logits, labels, direction, offsets, weights)
    assert -4 < offsets[int(scores.argmax())] < -0.5  # without it, -10, the first of all


def test_a_class_without_images_has_the_one_more_alone():
    labels, direction = torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, 0, 1])
    logits = 3.0 * torch.nn.functional.one_hot(labels, 3)
    weights = class_weights([1, 1, 1], "balanced_accuracy")
    scores = compute_scores(logits, labels, direction, [-3.0, 0.0], weights)
    temperature = fit_temperature(logits, labels)
    unknown = (torch.tensor([[-3.0], [0.0]]) * direction / temperature).softmax(1)[:, 2] ** 0.25
    assert unknown[0] < 0.5 * unknown[1]
    assert scores[1] - scores[0] > (unknown[1] - unknown[0]) / 3 - 0.05


def test_the_temperature_is_that_of_the_least_cross_entropy():
    """Three images of four right, in each class: the best is sure of them by that much."""
    labels = torch.tensor([0] * 400 + [1] * 4)
    predicted = labels.clone()
    predicted[::4] = 1 - predicted[::4]
    for size in (1.0, 2.0):
        logits = size * torch.nn.functional.one_hot(predicted, 2).float()
        expected = size / math.log(3)  # then softmax gives 3 / 4
        assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-3)
    right = torch.nn.functional.one_hot(labels, 2).float()
    assert fit_temperature(right, labels) == pytest.approx(0.2, rel=1e-3)
    assert fit_temperature(-right, labels) == pytest.approx(8, rel=1e-3)
