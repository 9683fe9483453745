"""Adapters on disk."""

import json

import pytest
import torch
from helpers.nets import TinyNet, randomize
from safetensors.torch import load_file, save_file

from lora_mnist.lora.adapter import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_adapter,
    read_metadata,
    save_adapter,
)
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.model import add_lora, set_lora_scale
from lora_mnist.lora.weight import lora_adapters

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def base(change=0.0):
    torch.manual_seed(0)
    net = TinyNet()
    with torch.no_grad():
        net.linear1.bias[0] += change
    return net


@pytest.fixture
def adapted():
    return randomize(add_lora(base(), rank=2, alpha=3))


@pytest.fixture
def folder(adapted, tmp_path):
    return save_adapter(adapted, tmp_path / "adapter")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(adapted, tmp_path):
    """The files are the same each time, also of an adapter that was loaded."""
    metadata = {"base_sha256": fingerprint(base().state_dict()), "a": "ä", "z": [1, {"b": None}]}
    folder = save_adapter(adapted, tmp_path / "adapter", metadata=metadata)
    trained = {"scale": 1, "trained": {"lora_alpha": 3, "alpha_pattern": {}}}
    assert read_metadata(folder) == metadata | trained
    loaded = load_adapter(base(), folder)
    assert torch.equal(loaded(X), adapted(X))
    plain = save_adapter(adapted, tmp_path / "plain")
    assert content(plain).keys() == {WEIGHTS_NAME, CONFIG_NAME}
    assert content(save_adapter(load_adapter(base(), plain), tmp_path / "again")) == content(plain)
    assert content(save_adapter(adapted, folder, metadata=metadata)) == content(folder)


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
@pytest.mark.parametrize("scale", [0, 0.7, -3])
def test_a_saved_scale_is_kept_and_nothing_is_lost(tmp_path, init, scale):
    """At 1 the adapter is as trained, bit for bit; also after it was loaded and saved again."""
    options = {"rank": 2, "alpha": 3, "alpha_pattern": {"linear2": 5}, "init": init}
    adapted = randomize(add_lora(base(), **options))
    trained = load_adapter(base(), save_adapter(adapted, tmp_path / "trained"))(X)
    set_lora_scale(adapted, scale)
    folder = save_adapter(adapted, tmp_path / "turned")
    loaded = load_adapter(base(), folder)
    assert {adapter.scale for adapter in lora_adapters(loaded)} == {scale}
    torch.testing.assert_close(loaded(X), adapted(X))
    again = save_adapter(loaded, tmp_path / "again")
    assert content(again)[WEIGHTS_NAME] == content(folder)[WEIGHTS_NAME]
    loaded = load_adapter(base(), again)
    set_lora_scale(loaded, 1)
    assert torch.equal(loaded(X), trained)


def test_of_several_adapters_or_scales_none_is_saved(adapted, tmp_path):
    lora_adapters(adapted)[0].scale = 0.5
    with pytest.raises(ValueError, match=r"the layers have the scales .*; expected one"):
        save_adapter(adapted, tmp_path / "two")
    with pytest.raises(ValueError, match="linear1 carries 2 adapters; expected one"):
        save_adapter(add_lora(adapted), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_another_base_is_refused_by_fingerprint(adapted, tmp_path, caplog):
    folder = save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    other = base(change=1)
    here, there = (fingerprint(net.state_dict()) for net in (other, base()))
    with pytest.raises(ValueError, match=f"made for the base {there} on mnist, this one is {here}"):
        load_adapter(other, tmp_path)
    assert not lora_adapters(other)
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)  # as PEFT would
    assert read_metadata(folder) == {}
    assert lora_adapters(load_adapter(base(), folder))
    assert "does not say which base it was made for: not checked" in caplog.text


def config(**changes):
    def damage(folder):
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def tensor(key, value):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS_NAME)
        tensors[f"base_model.model.{key}.weight"] = value
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(present, folder / WEIGHTS_NAME)

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


A = torch.ones(2, 6)
DAMAGES = [
    (cut(WEIGHTS_NAME, -8), f"expected a readable {WEIGHTS_NAME}"),
    (lambda f: (f / CONFIG_NAME).unlink(), f"expected a {CONFIG_NAME} with peft_type LORA"),
    (cut(CONFIG_NAME, -8), f"{CONFIG_NAME}: expected a JSON object"),
    (config(use_dora=True), "use_dora=True is not supported; expected False"),
    (config(init_lora_weights="pissa"), "init_lora_weights=pissa is not supported"),
    (config(lora_alpha=-1), "lora_alpha=-1 in .*: expected 3.0, as .* says"),
    (tensor("linear9.lora_A", A), "linear9.lora_A.weight belongs to no layer that can be adapted"),
    (tensor("linear1.lora_B", None), 'linear1: .*: "lora_B"'),
    (tensor("linear1.lora_A", A.T.contiguous()), r"linear1: .*lora_A: .* is torch.Size\(\[6, 6\]"),
    (tensor("linear1.lora_A", A / 0), "lora_A of linear1: expected finite numbers"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_refuses_a_damaged_or_foreign_adapter(folder, damage, message):
    damage(folder)
    net = base()
    with pytest.raises(ValueError, match=message) as refusal:
        load_adapter(net, folder)
    assert str(refusal.value).startswith(f"{folder}: ")
    assert "\n" not in str(refusal.value)
    assert not lora_adapters(net)
    assert all(p.requires_grad for p in net.parameters())
