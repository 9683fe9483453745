import pytest

from lora_mnist.measure.significance import (
    chance_text,
    mcnemar,
    weak,
    weakest,
    wilson,
)


def test_mcnemar_and_wilson_are_as_published():
    """Fay, vignette of the R package exact2x2; Newcombe 1998, table I, method 3."""
    assert mcnemar(2, 9) == pytest.approx(0.06543, rel=1e-3)
    assert mcnemar(0, 0) == 1
    assert wilson(81, 263) == pytest.approx((0.2553 * 263, 0.3662 * 263), abs=5e-5 * 263)


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
