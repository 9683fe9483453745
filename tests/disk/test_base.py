"""Anybody's weights, as they come out of training scripts; and the bases that are kept here."""

import pickle
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from composed import logged
from helpers.nets import TinyNet
from safetensors.torch import save_file
from torch import nn

from lora_mnist.disk.base import (
    find_base,
    load_weights,
    read_base,
    refuse_to_replace,
    set_current_base,
    versioned_base_path,
    write_base,
)
from lora_mnist.errors import UserError
from lora_mnist.lora.base_state import changed_tensors, fingerprint


@pytest.fixture
def state(tiny):
    return {name: tensor.clone() for name, tensor in tiny.state_dict().items()}


def other_net():
    torch.manual_seed(1)
    return TinyNet()


def prefixed(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def lightning(state):
    tensors = {**prefixed("model.")(state), "criterion.weight": torch.ones(7)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(5)}}}
    return {"epoch": 3, "state_dict": tensors, "optimizer_states": [optimizer]}


FORMS = {
    "lightning": lightning,
    "two prefixes in model": lambda state: {"model": prefixed("_orig_mod.net.")(state)},
    "teacher": lambda state: {**prefixed("student.")(state), "teacher.w": torch.ones(2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_reads_what_training_scripts_save(tmp_path, state, form):
    torch.save(FORMS[form](state), tmp_path / "mine.pt")
    net = other_net()
    base = load_weights(net, read_base(tmp_path / "mine.pt"))
    assert list(base.tensors) == list(state)
    assert changed_tensors(state, net.state_dict()) == []
    assert base.sha256 == fingerprint(state)
    with torch.no_grad():
        net.linear1.weight.zero_()
    assert changed_tensors(state, base.tensors) == []  # the base does not follow the network


@pytest.mark.parametrize(
    "prefixes", [("model.", "ema."), ("", "teacher."), ("state_dict.", "state_dict_ema.")]
)
def test_of_several_networks_in_a_file_one_is_chosen_by_name(tmp_path, state, prefixes):
    first, second = prefixes
    moved = {name: tensor + 1 for name, tensor in state.items()}
    content = {**prefixed(first)(state), **prefixed(second)(moved)}
    if "state_dict" in first:  # dictionaries in one, as timm writes them
        content = {first[:-1]: state, second[:-1]: moved, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "mine.pt")
    file, net = read_base(tmp_path / "mine.pt"), other_net()
    named = first or "''"
    with pytest.raises(ValueError, match=f"holds 2 networks; .* of {named}, {second}"):
        load_weights(net, file)
    with pytest.raises(ValueError, match=r"^base_prefix=nope\.: expected one of "):
        load_weights(net, file, "nope.")
    for prefix, expected in ((first, state), (second, moved)):
        load_weights(net, file, prefix)
        assert changed_tensors(expected, net.state_dict()) == []


def test_another_precision_is_converted(tmp_path):
    """Buffers too: a counter may have become half precision with the rest."""
    net, fresh = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    net(torch.randn(8, 2))
    saved = {name: tensor.half() for name, tensor in net.state_dict().items()}
    torch.save(saved, tmp_path / "mine.pt")
    base = load_weights(fresh, read_base(tmp_path / "mine.pt"))
    assert base.tensors["1.num_batches_tracked"] == 1
    expected = {name: saved[name].to(tensor.dtype) for name, tensor in net.state_dict().items()}
    assert changed_tensors(expected, fresh.state_dict()) == []
    assert base.sha256 == fingerprint(expected)


REFUSED = {
    "missing": (
        lambda state: dict(list(state.items())[:-1]),
        'key(s) in state_dict: "linear2.bias"; ',
    ),
    "other names": (
        prefixed("my"),
        "no name of the file is one of the network's: its names begin with mylinear1., the "
        "network's with linear1.; ",
    ),
    "outputs": (
        lambda state: {**state, "linear2.weight": torch.ones(7, 5), "linear2.bias": torch.ones(7)},
        "the file has 7 outputs (linear2.weight), the network 3: net.num_classes=7; ",
    ),
    "inputs": (
        lambda state: {**state, "linear1.weight": torch.ones(5, 1)},
        "its first layer takes 1 value, the network's 6; ",
    ),
    "width": (
        lambda state: (
            state | {"linear1.weight": torch.ones(9, 6), "linear2.weight": torch.ones(3, 9)}
        ),
        "Error(s) in loading state_dict for TinyNet: size mismatch",
    ),
    "too large for float32": (
        lambda state: {**state, "linear2.bias": torch.full((3,), 1e300, dtype=torch.float64)},
        "linear2.bias holds NaN or infinity",
    ),
    "whole numbers": (
        lambda state: {**state, "linear1.weight": torch.ones(5, 6, dtype=torch.int8)},
        "linear1.weight is torch.int8",
    ),
    "no tensors": (lambda state: {"epoch": 3, "loss": 0.1}, "holds a dict without tensors"),
    "a network": (lambda state: other_net(), "holds helpers.nets.TinyNet, which is not loaded"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refuses_other_weights(tmp_path, state, form):
    make, problem = REFUSED[form]
    torch.save(make(state), tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="; expected ") as caught:
        load_weights(other_net(), read_base(tmp_path / "mine.pt"), outputs_key="net.num_classes")
    assert problem in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_embedding_of_positions_is_no_first_layer(tmp_path):
    """Of a transformer whose images have another size."""
    net = nn.Linear(4, 3)
    net.pos_embed = nn.Parameter(torch.ones(1, 17, 4))
    torch.save({**net.state_dict(), "pos_embed": torch.ones(1, 197, 4)}, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=r"^Error\(s\) in loading .* for pos_embed"):
        load_weights(net, read_base(tmp_path / "mine.pt"))


class Trap:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


@pytest.mark.parametrize("kind", ["half", "half safetensors", "trap", "pickle"])
def test_damaged_files_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch, state, kind):
    monkeypatch.chdir(tmp_path)
    path, trap = Path("mine.pt"), {**state, "more": Trap()}
    if kind == "half safetensors":
        save_file(state, path)
    else:
        torch.save(trap if kind == "trap" else state, path)
    whole = path.read_bytes()
    contents = {"trap": whole, "pickle": pickle.dumps(trap, protocol=2)}
    path.write_bytes(contents.get(kind, whole[: len(whole) // 2]))
    start = "holds " if kind == "trap" else "damaged or "
    with pytest.raises(ValueError, match=rf"^{start}.*; expected .*weights"):
        load_weights(other_net(), read_base(path))
    assert not Path("trapped").exists()


def test_a_base_is_written_and_found_again(tmp_path, state):
    sha256 = fingerprint(state)
    own = versioned_base_path(tmp_path, "mnist", sha256)
    assert own.name == f"mnist-{sha256[:12]}.ckpt"
    write_base(state, own, {"mean": 0.5})
    assert list(tmp_path.iterdir()) == [own]
    assert load_weights(other_net(), read_base(own)).sha256 == sha256
    save_file(prefixed("net.")(state), tmp_path / "safetensors.pt", {"format": "pt"})
    assert load_weights(other_net(), read_base(tmp_path / "safetensors.pt")).sha256 == sha256
    file = read_base(own)
    assert changed_tensors(file.tensors, state) == []
    assert (file.sha256, file.record) == (sha256, {"mean": 0.5})
    torch.save(state, tmp_path / "another.pt")
    assert read_base(tmp_path / "another.pt")[1:3] == ({}, None)
    assert find_base(tmp_path, sha256) == own
    assert find_base(tmp_path / "none", sha256) is None


def made(folder, seed, current):
    torch.manual_seed(seed)
    tensors = TinyNet().state_dict()
    own = versioned_base_path(folder, "tiny", fingerprint(tensors))
    write_base(tensors, own)
    set_current_base(own, current)


def test_what_is_not_a_current_base_is_never_replaced(tmp_path, state):
    """Neither before a training nor after it."""
    own, weights = versioned_base_path(tmp_path, "mine", fingerprint(state)), tmp_path / "mine.pt"
    write_base(state, own)
    torch.save({"state_dict": state, "sha256": "0" * 64}, weights)
    for path in (own, weights):
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"base_ckpt=.* would replace it, .* another file"):
            refuse_to_replace(path)
        with pytest.raises(UserError, match="would replace it"):
            made(tmp_path / "base", 1, path)
        assert path.read_bytes() == before
    refuse_to_replace(tmp_path / "new.pt")


def test_the_way_back_is_a_command_that_goes_back(tmp_path):
    """Also where the base before was made elsewhere and had no file of its own here."""
    torch.manual_seed(0)
    tensors, target = TinyNet().state_dict(), tmp_path / "of a colleague.ckpt"
    write_base(tensors, target)
    with logged("lora_mnist.disk.base") as text:
        made(tmp_path / "base", 1, target)
        made(tmp_path / "base", 1, target)  # the same base: there is nothing to go back to
    assert text.getvalue().count("go back with") == 1
    command = text.getvalue().partition("go back with: ")[2].splitlines()[0]
    subprocess.run(shlex.split(command), check=True)
    assert read_base(target).sha256 == fingerprint(tensors)
