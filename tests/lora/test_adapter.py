"""Adapters on disk."""

import json
import re

import pytest
import torch
from helpers.commands import list_files
from helpers.nets import TinyNet, randomize
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.files import read_json, write_json
from lora_mnist.lora.adapter import load_adapter, read_metadata, save_adapter
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import (
    KINDS,
    add_lora,
    add_offset,
    set_lora_offset,
    set_lora_scale,
)
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.peft_lora import CONFIG_NAME, WEIGHTS_NAME
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
    metadata = {"base_sha256": hash_tensors(base().state_dict()), "a": "ä", "z": [1, {"b": None}]}
    save_adapter(adapted, tmp_path, metadata=metadata)
    assert read_metadata(tmp_path).items() >= metadata.items()
    assert torch.equal(load_adapter(base(), tmp_path)(X), adapted(X))
    files = list_files(tmp_path)
    assert files.keys() == {tmp_path / WEIGHTS_NAME, tmp_path / CONFIG_NAME}
    save_adapter(adapted, tmp_path, metadata=metadata)
    assert list_files(tmp_path) == files


@pytest.mark.parametrize("init", KINDS)
@pytest.mark.parametrize("scale", [0, -0.7])
def test_save_adapter_keeps_a_scale_and_loses_nothing(tmp_path, init, scale):
    """At 1 the adapter is as trained, bit for bit; also after it was loaded and saved again."""
    options = {"rank": 2, "alpha": 3, "init": init}
    adapted = randomize(add_lora(base(), **options))
    trained = load_adapter(base(), save_adapter(adapted, tmp_path / "trained"))(X)
    set_lora_scale(adapted, scale)
    folder = save_adapter(adapted, tmp_path / "turned")
    files, loaded = list_files(folder), load_adapter(base(), folder)
    torch.testing.assert_close(loaded(X), adapted(X))
    assert list_files(save_adapter(loaded, folder)) == files
    loaded = load_adapter(base(), folder)
    set_lora_scale(loaded, 1)
    assert torch.equal(loaded(X), trained)


def test_save_adapter_refuses_several_adapters_scales_or_offsets(adapted, tmp_path):
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
    offsets = add_lora(base())
    for layer, direction in (("linear1", torch.ones(5)), ("linear2", torch.ones(3))):
        add_offset(offsets, layer, Offset(direction))
    with pytest.raises(ValueError, match=r"linear1.bias and linear2.bias carry an offset"):
        save_adapter(offsets, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_save_adapter_refuses_a_kind_that_does_not_save_what_it_trains(tmp_path, monkeypatch):
    class Shifted(LoRAParametrization):
        def init_parameters(self, *options):
            super().init_parameters(*options)
            self.shift = nn.Parameter(torch.ones(()))

    monkeypatch.setitem(KINDS, "shifted", Shifted)
    with pytest.raises(ValueError, match="linear1: Shifted does not save shift"):
        save_adapter(add_lora(base(), init="shifted"), tmp_path / "shifted")
    assert not (tmp_path / "shifted").exists()


def test_load_adapter_refuses_another_base_by_fingerprint(adapted, tmp_path, caplog):
    folder = save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    other = base()
    nn.init.zeros_(other.linear1.bias)
    here, there = (hash_tensors(net.state_dict()) for net in (other, base()))
    with pytest.raises(ValueError, match=f"{there}.*{here}"):
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
        (lambda folder: (folder / CONFIG_NAME).unlink(), "peft_type=None"),
        (lambda folder: change(folder, use_qalora=True), "use_qalora=True"),
        (lambda folder: change(folder, use_dora=True), "use_dora=True"),
        (lambda folder: change(folder, lora_alpha=-1), "lora_alpha=-1"),
        (lambda folder: change_tensor(folder, "linear9.lora_A", A), "linear9.lora_A.weight"),
        (
            lambda folder: change_tensor(folder, "linear1.lora_B", None),
            "linear1.lora_B.weight is missing",
        ),
        (lambda folder: change_tensor(folder, "linear1.lora_A", torch.ones(2, 5)), "lora_A: "),
        (lambda folder: change_tensor(folder, "linear1.lora_A", A / 0), "linear1.lora_A.weight: "),
    ],
)
def test_load_adapter_refuses_a_damaged_or_foreign_adapter(adapted, tmp_path, damage, message):
    damage(save_adapter(adapted, tmp_path))
    net = base()
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}: .*{message}") as refusal:
        load_adapter(net, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not lora_adapters(net)


#: What a stranger may write in place of a value.
STRANGE = [None, float("nan"), 10**400, -1, "(", [3], {"x": "y"}]


def altered(content):
    """Yield the JSON object without one of its values, or with another one, at any depth."""
    for key, value in content.items():
        others = {name: each for name, each in content.items() if name != key}
        yield others
        inner = altered(value) if isinstance(value, dict) else ()
        yield from (others | {key: strange} for strange in (*STRANGE, *inner))


def altered_tensors(tensors):
    """Yield the tensors without one of them, or with one of another shape, type or number."""
    for key, tensor in tensors.items():
        others = {name: each for name, each in tensors.items() if name != key}
        yield others
        for strange in (tensor[0], tensor[None], tensor.sum(), tensor.int(), tensor / 0):
            yield others | {key: strange.contiguous()}
        yield tensors | {f"{key}9": tensor.clone()}


@pytest.mark.parametrize(("init", "scale"), [("gaussian", 0), ("dora", 0.5)])
def test_what_the_files_say_has_to_be_there_and_nothing_else(tmp_path, init, scale):
    """Whatever a stranger changes, it is refused in a line, or the adapter is the same."""
    net = add_lora(base(), rank=2, alpha=3, init=init, use_rslora=True)
    set_lora_scale(randomize(net), scale)
    set_lora_offset(add_offset(net, "linear2", Offset(torch.tensor([0.0, 1, 0]))), 1.5)
    save_adapter(net, tmp_path)
    tensors, config = load_file(tmp_path / WEIGHTS_NAME), read_json(tmp_path / CONFIG_NAME)
    metadata = read_metadata(tmp_path)
    files = [(tensors, each, metadata) for each in altered(config)]
    files += [(tensors, config, each) for each in altered(metadata)]
    files += [(each, config, metadata) for each in altered_tensors(tensors)]
    refused = 0
    for tensors, config, metadata in files:
        save_file(tensors, tmp_path / WEIGHTS_NAME, {"lora_mnist": json.dumps(metadata)})
        (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
        try:
            loaded = load_adapter(base(), tmp_path)
        except ValueError:
            refused += 1
        else:
            assert torch.equal(loaded(X), net(X))
    assert refused > 0.8 * len(files)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_hundred_thousand_brackets_are_damage(adapted, tmp_path, name):
    tensors, brackets = load_file(save_adapter(adapted, tmp_path) / WEIGHTS_NAME), "[" * 100_000
    if name == CONFIG_NAME:
        (tmp_path / name).write_text(brackets)
    else:
        save_file(tensors, tmp_path / name, {"lora_mnist": brackets})
    with pytest.raises(ValueError, match="expected a"):
        load_adapter(base(), tmp_path)


def test_an_adapter_of_peft_has_all_layers_that_its_config_names(adapted, tmp_path):
    save_adapter(adapted, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_NAME)
    save_file(
        {key: each for key, each in tensors.items() if "linear2" in key}, tmp_path / WEIGHTS_NAME
    )
    with pytest.raises(ValueError, match="linear1.lora_A.weight is missing"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize("init", KINDS)
def test_half_precision_with_an_offset_is_saved_as_it_is_loaded(tmp_path, init):
    net = randomize(add_lora(base().bfloat16(), rank=2, init=init))
    set_lora_offset(add_offset(net, "linear2", Offset(torch.tensor([0.0, 1, 0]))), 1.3)
    loaded = load_adapter(base().bfloat16(), save_adapter(net, tmp_path))
    assert torch.equal(loaded(X.bfloat16()), net(X.bfloat16()))
