import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.errors import (
    IncompleteError,
    TrainingError,
    UserError,
    config_group,
    missing_extra,
    one_line,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("rank=0: expected more"), "lora.rank=0: expected more"),
        (ValueError("Invalid\n learning rate"), "lora: Invalid learning rate"),
        (ValueError("target=10: expected less"), "digit=10: expected less"),
        (ValueError("targets=10: expected less"), "lora.targets=10: expected less"),
        (TypeError("f() got 'nope'"), "lora: f() got 'nope'"),
    ],
)
def test_the_config_group_stands_in_front(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as caught, config_group("lora"):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_the_config_group_sees_through_instantiate() -> None:
    config = {"_target_": "lora_mnist.classifier.loss.Loss", "fit": "l1"}
    message = r"^lora.fit=l1: expected one of cross_entropy, hinge"
    with pytest.raises(UserError, match=message), config_group("lora"):
        instantiate(config)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError), config_group("lora"):
        raise RuntimeError
    with pytest.raises(OmegaConfBaseException), config_group("lora"):  # it names its own key
        _ = OmegaConf.create({"a": "${nope}"}).a


def test_a_missing_extra_is_named_with_the_command_that_brings_it() -> None:
    error = missing_extra("format=onnx", "onnx", ModuleNotFoundError(name="onnxscript"))
    assert str(error) == (
        "format=onnx: the package onnxscript is missing; "
        'expected the extra onnx: pip install "lora-mnist[onnx]"'
    )


def test_exit_codes_and_lines() -> None:
    assert [kind.exit_code for kind in (UserError, IncompleteError, TrainingError)] == [2, 1, 1]
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
