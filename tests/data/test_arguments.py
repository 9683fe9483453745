from typing import Any

import pytest

from lora_mnist.data.arguments import (
    MOST_SEED,
    checked_int,
    checked_mean,
    checked_size,
    checked_std,
    resolve_target,
)

PETS = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("target", "numbers"),
    [(None, None), (0, [0]), ("dog", [1]), (["owl", 0], [2, 0]), ((1, 2), [1, 2])],
)
def test_a_target_is_a_name_or_a_number(target: Any, numbers: list[int] | None) -> None:
    assert resolve_target(target, PETS) == numbers


def test_a_name_goes_before_a_number() -> None:
    assert resolve_target([2, 0, 10], ["1", "10", "2"]) == [2, 0, 1]


@pytest.mark.parametrize("target", ["cow", 3, -1, 1.0, False, [], ["cat", "cow"], ["cat", 0]])
def test_what_names_no_class_once(target: Any) -> None:
    with pytest.raises(ValueError, match=r"^target=.*: expected [^\n]+$"):
        resolve_target(target, PETS)


def test_many_names_do_not_bury_the_message() -> None:
    with pytest.raises(ValueError, match=r"c0, c1, \.\.\.") as caught:
        resolve_target("cow", [f"c{i}" for i in range(1000)])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [0, 5, 0.0, 0.25, 0.999])
def test_a_size_is_a_number_or_a_share(size: float) -> None:
    assert checked_size("val_size", size) == size


@pytest.mark.parametrize("size", [-1, 1.0, 2.5, True, None, "5", float("nan")])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match=f"val_size={size}: expected a number of images or a"):
        checked_size("val_size", size)


def test_mean_and_std_may_be_given_by_channel() -> None:
    assert checked_mean([0.1, 0, 1], 3) == [0.1, 0, 1]
    assert checked_std((0.1, 0.2, 0.3), 3) == [0.1, 0.2, 0.3]
    assert checked_mean([0.5], 1) == 0.5
    assert checked_std(None, 3) is None


@pytest.mark.parametrize("value", [[0.1, 0.2], [], "0.5", [0.1, 0.2, None], -0.1, True])
def test_what_is_neither_mean_nor_std(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^mean=.*: expected a number from 0 to 1, or 3 of them"):
        checked_mean(value, 3)
    with pytest.raises(ValueError, match=r"^std=.*: expected a number > 0 .*, or 3 of them"):
        checked_std(value, 3)


def test_an_integer_has_a_largest_value() -> None:
    assert checked_int("seed", MOST_SEED, 0, MOST_SEED) == MOST_SEED
    with pytest.raises(ValueError, match=r"seed=\d+: expected an integer from 0 to 92\d+"):
        checked_int("seed", MOST_SEED + 1, 0, MOST_SEED)
