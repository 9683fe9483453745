from pathlib import Path

import pytest
import torch
from helpers.nets import TinyNet
from torch import nn

from lora_mnist import CNN, add_lora, lora_parameters, save_adapter
from lora_mnist.lora import lora_layers
from lora_mnist.show.spectrum import read_updates, spectra


def adapted(net: nn.Module, init: str = "gaussian", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    add_lora(net, init=init, **settings)
    for parameter in lora_parameters(net):
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (TinyNet(), {"rank": 2, "alpha": 3.0}),
        (TinyNet(), {"rank": 8, "use_rslora": True}),  # more than there are outputs
        (TinyNet(), {"rank": 2, "init": "pissa"}),
        (CNN(), {"rank": 2}),
    ],
)
def test_singular_values_are_those_of_the_dense_update(
    net: nn.Module, settings: dict[str, object], tmp_path: Path
) -> None:
    adapted(net, **settings)
    save_adapter(net, tmp_path)
    live, saved = spectra(net), read_updates(tmp_path)
    assert live.keys() == saved.keys() == dict(lora_layers(net)).keys()
    for name, layer in lora_layers(net):
        update = layer.weight - layer.parametrizations.weight.original
        dense = torch.linalg.svdvals(update.flatten(1))
        for values in (live[name], saved[name].singular_values()):
            shown = torch.zeros_like(dense)
            shown[: len(values)] = values[: len(dense)]
            torch.testing.assert_close(shown, dense.detach(), atol=1e-4, rtol=1e-4)


def test_a_fresh_adapter_adds_nothing() -> None:
    assert all(not values.any() for values in spectra(add_lora(TinyNet())).values())


def test_the_largest_rows(tmp_path: Path) -> None:
    net = adapted(TinyNet(), rank=2)
    save_adapter(net, tmp_path)
    numbers, rows = read_updates(tmp_path)["linear1"].largest_rows(3)
    update = net.linear1.weight - net.linear1.parametrizations.weight.original
    assert numbers.tolist() == update.norm(dim=1).argsort(descending=True)[:3].tolist()
    torch.testing.assert_close(rows, update[numbers].detach(), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_read_adds_nothing(tmp_path: Path) -> None:
    assert read_updates(tmp_path) == {}
    save_adapter(add_lora(TinyNet()), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    assert read_updates(tmp_path) == {}
