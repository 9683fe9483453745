from dataclasses import replace
from types import SimpleNamespace

import torch
from composed import FEW, SMALL, composed

from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.run import Run
from lora_mnist.training.opening import open_session


def test_the_network_stays_on_the_device_of_the_trainer(outputs, tmp_path):
    run = Run(tmp_path / "run")
    cfg = composed("eval", *SMALL, *FEW, "logger=none", f"paths.outputs={outputs}")
    session = open_session(resolve_configuration(cfg, run), run)
    elsewhere = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    session = replace(session, trainer=elsewhere)
    assert session.switch_to_eval().type == "meta"
    assert all(parameter.is_meta for parameter in session.net.parameters())
    assert not any(module.training for module in session.net.modules())
