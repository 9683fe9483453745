from typing import Any

import pytest

from lora_mnist.lora import LayerSettings

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rank", bad) for bad in (0, -3, 2.0, True, "2")),
        *(("alpha", bad) for bad in (0, -1, NAN, -INF, True, "1", None)),
        *(("init", "zeros"), ("init_std", 0), ("use_rslora", 1), ("use_dora", "yes")),
        *(("dropout", 1), ("dropout", -0.1)),
    ],
)
def test_a_refusal_names_argument_and_value(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value}: expected [^\n]*$"):
        LayerSettings(**{key: value})


def test_values_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="init_std=1: expected null, since init=kaiming"):
        LayerSettings(init="kaiming", init_std=1)
    with pytest.raises(ValueError, match="use_dora=True: expected init=gaussian or init=kaiming"):
        LayerSettings(init="pissa", use_dora=True)
