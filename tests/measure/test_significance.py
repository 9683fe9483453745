import pytest

from lora_mnist.measure.significance import (
    chance_text,
    is_near_chance,
    knows_validation,
    mcnemar,
    other_mix,
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


@pytest.mark.parametrize(
    ("errors", "images", "expected"),
    [
        ([171] * 8, [200] * 8, True),  # 14.5% of 8 classes
        ([0, 10], [90, 10], True),  # always the same class
        ([3, 3], [10, 10], True),  # 70% of so few may be chance
        ([70, 70], [200, 200], False),
        ([3, 0, 3], [9, 0, 9], False),
    ],
)
def test_is_near_chance_where_it_is_hardly_better_than_guessing(errors, images, expected):
    assert is_near_chance(errors, images) == expected


def test_chance_text_never_rounds_a_difference_to_significance():
    assert chance_text(1e-9) == "p < 0.001"
    assert chance_text(0.05) == "p = 0.05"
    assert chance_text(0.0500001) == "may be chance, p = 0.0500001"


def test_knows_validation_where_it_errs_far_less_on_them():
    def outcome(*per_class):
        errors, images = zip(*per_class, strict=True)
        each = {"errors_per_class": errors, "images_per_class": images}
        return {"errors": sum(errors), **each}

    assert knows_validation(outcome((39, 1000)), outcome((120, 1000)))  # 3.9% and 12%
    assert not knows_validation(outcome((4, 100)), outcome((12, 100)))  # may be chance
    assert not knows_validation(
        outcome((1000, 10_000)), outcome((1400, 10_000))
    )  # no factor of 1.5
    # A class that is hard, and rare among validation images alone, says nothing.
    assert not knows_validation(outcome((90, 900), (5, 10)), outcome((100, 1000), (600, 1000)))
    assert knows_validation(outcome((9, 900), (0, 10)), outcome((100, 1000), (600, 1000)))


def test_weak_classes_have_more_errors_than_the_rest_beyond_chance():
    """Also with five images of a class, where so many are wrong."""
    assert list(weak([20, 15, 4], [500, 300, 5])) == [2]
    assert list(weak([5, 6, 70, 60], [100] * 4)) == [2, 3]
    assert not weak([5, 6, 7, 4], [100] * 4)
    assert not weak([3, 0], [9, 0])
    assert not weak([1, 0, 0, 0], [8] * 4)  # one error has to be somebody's


def test_another_mix_of_classes_is_named_by_the_class_that_differs_most():
    assert other_mix([500, 500, 5], [1000, 1000, 1000])[0] == 2
    assert other_mix([50, 49, 51], [100, 101, 99]) is None
    assert other_mix([50, 0], [100, 0]) is None
