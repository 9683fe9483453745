"""The objects that a configuration names."""

import pytest
import torch
from helpers.commands import refused

from lora_mnist.config.make import find_device


@pytest.mark.parametrize(
    ("own", "devices"),
    [
        (None, {"auto": "cpu", "cpu": "cpu", "gpu": "no GPU", "mps": "no GPU"}),
        ("cuda", {"auto": "cuda", "cpu": "cpu", "gpu": "cuda", "mps": "a cuda device"}),
        ("mps", {"auto": "mps", "cpu": "cpu", "gpu": "mps", "mps": "mps"}),
    ],
)
def test_a_device_goes_by_lightnings_word(own, devices, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: own is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(own))
    for word, expected in devices.items():
        if " " in expected:
            line = refused(find_device, word)
            assert line.startswith(f"accelerator={word}: ")
            assert line.endswith(f"this machine has {expected}")
        else:
            assert find_device(word).type == expected
