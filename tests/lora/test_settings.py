from typing import Any

import pytest

from lora_mnist.lora import LayerSettings
from lora_mnist.lora.settings import is_number


def test_scaling() -> None:
    assert LayerSettings(rank=4, alpha=3).scaling == 3 / 4
    assert LayerSettings(rank=4, alpha=3, use_rslora=True).scaling == 3 / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank=0: expected an integer >= 1"),
        ({"rank": 2.0}, "rank=2.0: expected an integer >= 1"),
        ({"rank": True}, "rank=True: expected an integer >= 1"),
        ({"rank": "2"}, "rank=2: expected an integer >= 1"),
        ({"alpha": -1}, "alpha=-1: expected a finite number > 0"),
        ({"alpha": 10**400}, "alpha=1000.*: expected a finite number > 0"),
        ({"alpha": "1"}, "alpha=1: expected a finite number > 0"),
        ({"init_std": 0}, "init_std=0: expected a finite number > 0"),
        ({"use_rslora": "false"}, "use_rslora=false: expected true or false"),
        ({"dropout": 1}, "dropout=1: expected a number from 0 to below 1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerSettings(**arguments)


def test_numbers() -> None:
    assert all(map(is_number, (0, -1, 1.5, 3.4e38, 10**38)))
    assert not any(map(is_number, (True, "1", None, float("nan"), float("-inf"), 3.5e38, 10**400)))
