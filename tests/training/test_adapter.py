import pytest
import torch
from composed import run
from helpers.commands import refused
from helpers.repairs import QUIET

from lora_mnist.errors import UserError
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import KINDS


def test_what_could_not_be_saved_is_not_trained(outputs, monkeypatch):
    class Shifted(LoRAParametrization):
        def init_parameters(self, *options):
            super().init_parameters(*options)
            self.shift = torch.nn.Parameter(torch.ones(()))

    monkeypatch.setitem(KINDS, "shifted", Shifted)
    said = refused(run, outputs, "stage=lora", "digit=9", "lora.init=shifted")
    assert said.startswith("lora: ")
    assert "does not save shift" in said
    assert not list(outputs.glob("lora/**/*.ckpt"))


def test_few_validation_images_of_a_class_are_logged_and_none_are_refused(go, caplog):
    """The last training image is a six, the one before it a nine."""
    go("one nine", *QUIET, "data.val_size=2")
    assert "lora.scale=auto: 9 has only 1 validation image, so chance decides" in caplog.text
    assert "no validation images of 0, 1, 2, 3, 4, 5, 7, 8, " in caplog.text
    with pytest.raises(UserError, match=r"^lora\.scale=auto: expected validation images of 9: "):
        go("no nine", *QUIET, "data.val_size=1")
