import pytest

from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.errors import RequirementError, UserError

RESULTS = {
    "stage": "lora",
    "test": {"broken": 85, "accuracy": 0.5, "errors_per_class": [7, 1], "loss": None},
    "test_base": {"errors_per_class": [7, 2]},
    "each": {"2026-11-25_03-28": {"errors": 3}},
    "base_unchanged": True,
}


#: Comparisons by the exit code of a command that requires them; the last ones have no number,
#: or are no comparisons.
TEXTS = {
    0: [
        *("test.broken <= 85", "85 == test.broken", " test.broken > 8.4e1 "),
        "test.errors_per_class.1 < test_base.errors_per_class.1",
        "each.2026-11-25_03-28.errors >= -1",
    ],
    1: ["test.broken<85", "test.accuracy >= .6", "test.broken == test_base.errors_per_class.0"],
    2: [
        *("test.brokn < 1", "test.loss < 1", "base_unchanged < 1", "test.broken"),
        *("test.broken = 2", "< 2", "1 < 2 < 3", "max(test.broken, 1) < 2", ""),
    ],
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code in TEXTS for text in TEXTS[code]])
def test_numbers_are_compared(code, text):
    if code == 0:
        check_require(parse_require(None) + parse_require(text), RESULTS)
    else:
        with pytest.raises(UserError) as caught:
            check_require(parse_require([text]), RESULTS)
        assert caught.value.exit_code == code


def test_all_that_does_not_hold_is_named_with_both_values():
    texts = ["test.broken <= 20", "1 < 2", "test.errors_per_class.0 < test_base.errors_per_class.0"]
    with pytest.raises(RequirementError) as caught:
        check_require(parse_require(texts), RESULTS)
    assert str(caught.value) == (
        "require=test.broken <= 20: 85 <= 20 does not hold; "
        "test.errors_per_class.0 < test_base.errors_per_class.0: 7 < 7 does not hold"
    )
