from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composed import FEW, SMALL, composed, logged, run
from helpers.commands import refused
from helpers.stranger import config, move_in

from lora_mnist.config.command import Run
from lora_mnist.config.keys import checked
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import KINDS
from lora_mnist.training.opening import open_session


def test_the_network_stays_on_the_device_of_the_trainer(outputs, tmp_path):
    run = Run(tmp_path / "run")
    cfg = composed("eval", *SMALL, *FEW, "logger=none", f"paths.outputs={outputs}")
    session = open_session(checked(cfg, run), run)
    elsewhere = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    session = replace(session, trainer=elsewhere)
    assert session.to_evaluate().type == "meta"
    assert all(parameter.is_meta for parameter in session.net.parameters())
    assert not any(module.training for module in session.net.modules())


def of_probabilities():
    """The stranger's network, ended by a softmax."""
    from nets_of_a_stranger import Net

    net = Net()
    net.register_forward_hook(lambda *arguments: arguments[-1].softmax(1))
    return net


def test_a_scale_of_no_adapter_is_refused_before_its_base_is_read(tmp_path):
    """There is none in this folder."""
    cfg, run = composed("eval", "offset=1", f"paths.outputs={tmp_path}"), Run(tmp_path)
    assert refused(open_session, checked(cfg, run), run).startswith("offset=1: ")


@pytest.mark.parametrize(
    "mistake",
    [
        f"net._target_={__name__}.of_probabilities -> net: ",
        "lora.target_modules=[nose]",
        "loss.target_weight=2",
        "callbacks=best -> callbacks: ",
    ],
)
def test_what_needs_no_image_is_refused_before_images_are_read(tmp_path, monkeypatch, mistake):
    """A picture that cannot be read would be named."""
    move_in(tmp_path, monkeypatch)
    Path("photos/emu/7.png").write_text("no picture")
    wrong, _, start = mistake.partition(" -> ")
    cfg, run = config("train", "stage=lora", "target=dog", "trainer=cpu", wrong), Run(tmp_path)
    with logged("lora_mnist") as log:
        assert refused(open_session, checked(cfg, run), run).startswith(start or wrong)
    assert "7.png" not in log.getvalue()


def test_what_could_not_be_saved_is_not_trained(outputs, monkeypatch):
    class Shifted(LoRAParametrization):
        def start(self, *options):
            super().start(*options)
            self.shift = torch.nn.Parameter(torch.ones(()))

    monkeypatch.setitem(KINDS, "shifted", Shifted)
    said = refused(run, outputs, "stage=lora", "digit=9", "lora.init=shifted")
    assert said.startswith("lora: ")
    assert "does not save shift" in said
    assert not list(outputs.glob("lora/**/*.ckpt"))
