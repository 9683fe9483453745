import re
from typing import Any

import pytest

from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.errors import RequirementError, UserError

RESULTS: dict[str, Any] = {
    "stage": "lora",
    "test": {"broken": 85, "accuracy": 0.5, "errors_per_class": [7, 1], "loss": None},
    "test_base": {"errors_per_class": [7, 2]},
    "each": {"2026-11-25_03-28": {"errors": 3}},
    "base_unchanged": True,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("test.broken <= 85", True),
        ("test.broken<85", False),
        ("85 == test.broken", True),
        (" test.broken > 8.4e1 ", True),
        ("test.accuracy >= .6", False),
        ("test.errors_per_class.1 < test_base.errors_per_class.1", True),
        ("test.errors_per_class.0 < test_base.errors_per_class.0", False),
        ("each.2026-11-25_03-28.errors >= -1", True),
    ],
)
def test_numbers_are_compared(text: str, holds: bool) -> None:
    comparisons = parse_require(text)
    if holds:
        check_require(parse_require(None) + comparisons, RESULTS)
    else:
        with pytest.raises(RequirementError):
            check_require(comparisons, RESULTS)


def test_all_that_does_not_hold_is_named_with_both_values() -> None:
    texts = ["test.broken <= 20", "1 < 2", "test.errors_per_class.0 < test_base.errors_per_class.0"]
    with pytest.raises(RequirementError) as caught:
        check_require(parse_require(texts), RESULTS)
    assert str(caught.value) == (
        "require=test.broken <= 20: 85 <= 20 does not hold; "
        "test.errors_per_class.0 < test_base.errors_per_class.0: 7 < 7 does not hold"
    )
    with pytest.raises(RequirementError, match=r"1234567 < 1234566 does not hold"):
        check_require(parse_require("a < b"), {"a": 1234567, "b": 1234566})
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("side", "alike"),
    [
        ("test.brokn", "test.broken"),
        ("test.loss", "test"),  # no number
        ("base_unchanged", "test"),
    ],
)
def test_a_number_that_is_not_there_is_no_zero(side: str, alike: str) -> None:
    expected = (
        rf"require={side} < 1: results.json has no number {side}; expected one like .*{alike}"
    )
    with pytest.raises(UserError, match=expected) as caught:
        check_require(parse_require([f"{side} < 1"]), RESULTS)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    ["test.broken", "test.broken = 2", "< 2", "1 < 2 < 3", "max(test.broken, 1) < 2", ""],
)
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^require={re.escape(text)}: expected two numbers or"):
        parse_require([text])
