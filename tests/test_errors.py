import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora_mnist.errors import UserError, config_group


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("rank=0: expected more"), "lora.rank=0: expected more"),
        (ValueError("Invalid\n learning rate"), "lora: Invalid learning rate"),
        (ValueError("target=10: expected less"), "target=10: expected less"),
        (ValueError("targets=10: expected less"), "lora.targets=10: expected less"),
        (TypeError("f() got 'nope'"), "lora: f() got 'nope'"),
        (
            TypeError("f() got an unexpected keyword argument 'a'"),
            "lora.a: f() got an unexpected keyword argument 'a'",
        ),
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
