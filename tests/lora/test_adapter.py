"""Adapters on disk."""

import re

import pytest
import torch
from helpers.commands import files_of
from helpers.nets import TinyNet, randomize
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.files import read_json, write_json
from lora_mnist.lora.adapter import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_adapter,
    read_metadata,
    save_adapter,
)
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import KINDS, add_lora, set_lora_scale
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import lora_adapters

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def base():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def adapted():
    return randomize(add_lora(base(), rank=2, alpha=3))


def test_save_adapter_and_load_adapter_are_a_round_trip(adapted, tmp_path):
    """The files are the same each time."""
    metadata = {"base_sha256": fingerprint(base().state_dict()), "a": "ä", "z": [1, {"b": None}]}
    save_adapter(adapted, tmp_path, metadata=metadata)
    trained = {"scale": 1, "trained": {"lora_alpha": 3, "alpha_pattern": {}}}
    assert read_metadata(tmp_path) == metadata | trained
    assert torch.equal(load_adapter(base(), tmp_path)(X), adapted(X))
    files = files_of(tmp_path)
    assert files.keys() == {tmp_path / WEIGHTS_NAME, tmp_path / CONFIG_NAME}
    save_adapter(adapted, tmp_path, metadata=metadata)
    assert files_of(tmp_path) == files


@pytest.mark.parametrize("init", KINDS)
@pytest.mark.parametrize("scale", [0, -0.7])
def test_save_adapter_keeps_a_scale_and_loses_nothing(tmp_path, init, scale):
    """At 1 the adapter is as trained, bit for bit; also after it was loaded and saved again."""
    options = {"rank": 2, "alpha": 3, "alpha_pattern": {"linear2": 5}, "init": init}
    adapted = randomize(add_lora(base(), **options))
    trained = load_adapter(base(), save_adapter(adapted, tmp_path / "trained"))(X)
    set_lora_scale(adapted, scale)
    folder = save_adapter(adapted, tmp_path / "turned")
    files, loaded = files_of(folder), load_adapter(base(), folder)
    torch.testing.assert_close(loaded(X), adapted(X))
    assert files_of(save_adapter(loaded, folder)) == files
    loaded = load_adapter(base(), folder)
    set_lora_scale(loaded, 1)
    assert torch.equal(loaded(X), trained)


def test_save_adapter_refuses_several_adapters_or_scales(adapted, tmp_path):
    lora_adapters(adapted)[0].point = Point(0.5)
    with pytest.raises(ValueError, match=r"the adapters stand at .*; expected one point"):
        save_adapter(adapted, tmp_path / "two")
    with pytest.raises(ValueError, match="linear1 carries 2 adapters; expected one"):
        save_adapter(add_lora(adapted), tmp_path / "two")
    mixed = add_lora(
        add_lora(base(), target_modules="linear1"), target_modules="linear2", init="dora"
    )
    with pytest.raises(ValueError, match="several kinds of adapters; expected one"):
        save_adapter(mixed, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_save_adapter_refuses_a_kind_that_does_not_save_what_it_trains(tmp_path, monkeypatch):
    class Shifted(LoRAParametrization):
        def start(self, *options):
            super().start(*options)
            self.shift = nn.Parameter(torch.ones(()))

    monkeypatch.setitem(KINDS, "shifted", Shifted)
    with pytest.raises(ValueError, match="linear1: Shifted does not save shift"):
        save_adapter(add_lora(base(), init="shifted"), tmp_path / "shifted")
    assert not (tmp_path / "shifted").exists()


def test_load_adapter_refuses_another_base_by_fingerprint(adapted, tmp_path, caplog):
    folder = save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    other = base()
    nn.init.zeros_(other.linear1.bias)
    here, there = (fingerprint(net.state_dict()) for net in (other, base()))
    with pytest.raises(ValueError, match=f"{there} on mnist.*{here}"):
        load_adapter(other, tmp_path)
    assert not lora_adapters(other)
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)  # as PEFT would
    assert read_metadata(folder) == {}
    assert lora_adapters(load_adapter(base(), folder))
    assert "not checked" in caplog.text


def change(folder, **values):
    write_json(folder / CONFIG_NAME, read_json(folder / CONFIG_NAME) | values)


def change_tensor(folder, key, value):
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors[f"base_model.model.{key}.weight"] = value
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(present, folder / WEIGHTS_NAME)


def cut(folder, name, size):
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


A = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder, WEIGHTS_NAME, -8), WEIGHTS_NAME),
        (lambda folder: cut(folder, CONFIG_NAME, -8), CONFIG_NAME),
        (lambda folder: (folder / CONFIG_NAME).unlink(), "peft_type LORA"),
        (lambda folder: change(folder, use_qalora=True), "use_qalora=True"),
        (lambda folder: change(folder, use_dora=True), "linear1: .*lora_magnitude_vector"),
        (lambda folder: change(folder, lora_alpha=-1), "lora_alpha=-1"),
        (lambda folder: change_tensor(folder, "linear9.lora_A", A), "linear9.lora_A.weight"),
        (lambda folder: change_tensor(folder, "linear1.lora_B", None), 'linear1: .*"lora_B"'),
        (lambda folder: change_tensor(folder, "linear1.lora_A", torch.ones(2, 5)), "lora_A: "),
        (lambda folder: change_tensor(folder, "linear1.lora_A", A / 0), "lora_A of linear1"),
    ],
)
def test_load_adapter_refuses_a_damaged_or_foreign_adapter(adapted, tmp_path, damage, message):
    damage(save_adapter(adapted, tmp_path))
    net = base()
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: .*{message}") as refusal:
        load_adapter(net, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not lora_adapters(net)
