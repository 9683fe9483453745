"""The bases that are kept here."""

import os
import shlex
import subprocess

import pytest
import torch
from composed import logged
from helpers.nets import TinyNet
from safetensors.torch import save_file

from lora_mnist.classifier.base import (
    base_name,
    check_replaceable,
    find_base_by_sha256,
    permanent_base_path,
    set_current_base,
    write_base,
)
from lora_mnist.classifier.record import NO_RECORD, Record
from lora_mnist.classifier.weights_file import load_weights, read_base
from lora_mnist.errors import UserError
from lora_mnist.files import atomic_write
from lora_mnist.lora.base_state import changed_tensors, hash_tensors

#: Weights of two bases. No new network has them: its own lie between -1 and 1.
STATE = {name: tensor + 2 for name, tensor in TinyNet().state_dict().items()}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def test_write_base_writes_what_base_with_sha256_finds(tmp_path):
    sha256 = hash_tensors(STATE)
    own = permanent_base_path(tmp_path, "mnist", sha256)
    assert own.name == f"mnist-{sha256[:12]}.ckpt"
    record = Record("mnist", {"_target_": "lora_mnist.MLP"}, {"mean": 0.5}, made={"seed": 1})
    write_base(STATE, own, record)
    named = {f"net.{name}": tensor for name, tensor in STATE.items()}
    save_file(named, tmp_path / "safetensors.pt", {"format": "pt"})
    assert load_weights(TinyNet(), read_base(tmp_path / "safetensors.pt")).sha256 == sha256
    file = read_base(own)
    assert changed_tensors(file.tensors, STATE) == []
    assert (file.sha256, file.record) == (sha256, record)
    torch.save(STATE, tmp_path / "mine.pt")
    assert read_base(tmp_path / "mine.pt")[1:3] == ("", NO_RECORD)
    assert find_base_by_sha256(tmp_path, sha256) == own
    assert find_base_by_sha256(tmp_path / "none", sha256) is None


def test_two_networks_have_two_current_bases():
    names = set()
    for target in ("my.Net", "your.Net", "lora_mnist.CNN", "torchvision.models.resnet18"):
        names.add(base_name({"name": "photos"}, {"_target_": target}))
    assert names == {"photos_my.net", "photos_your.net", "photos_cnn", "photos_resnet18"}
    cifar = {"_target_": "lora_mnist.data.CIFAR", "dataset": "CIFAR100", "name": None}
    own = {"_target_": "lora_mnist.data.CIFAR"}  # which is CIFAR-10, where nothing else is said
    assert base_name(own, {"_target_": "lora_mnist.MLP"}) == "cifar10"
    assert base_name(cifar, {"_target_": "lora_mnist.ResNet"}) == "cifar100_resnet"


def make_current(folder, current):
    own = permanent_base_path(folder, "tiny", hash_tensors(OTHER))
    write_base(OTHER, own)
    set_current_base(own, current)


def test_refuse_to_replace_what_is_not_a_current_base(tmp_path):
    """Neither before a training nor after it."""
    own, weights = permanent_base_path(tmp_path, "mine", hash_tensors(STATE)), tmp_path / "mine.pt"
    write_base(STATE, own)
    torch.save({"state_dict": STATE, "sha256": "0" * 64}, weights)
    for path in (own, weights):
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"base_ckpt=.* would replace it, .* another file"):
            check_replaceable(path)
        with pytest.raises(UserError, match="would replace it"):
            make_current(tmp_path / "base", path)
        assert path.read_bytes() == before
    check_replaceable(tmp_path / "new.pt")


def test_set_current_base_names_a_command_that_goes_back(tmp_path):
    """Also where the base before was made elsewhere and had no file of its own here."""
    target = tmp_path / "of a colleague.ckpt"
    write_base(STATE, target)
    with logged("lora_mnist.classifier.base") as text:
        make_current(tmp_path / "base", target)
        make_current(tmp_path / "base", target)  # the same base: there is nothing to go back to
    assert text.getvalue().count("restore it with") == 1
    command = text.getvalue().partition("restore it with: ")[2].splitlines()[0]
    subprocess.run(shlex.split(command), check=True)
    assert read_base(target).sha256 == hash_tensors(STATE)


def test_set_current_base_does_not_rely_on_a_damaged_copy(tmp_path):
    """The current base would be in no file any more."""
    sha256 = hash_tensors(STATE)
    own, current = permanent_base_path(tmp_path, "tiny", sha256), tmp_path / "tiny.ckpt"
    write_base(STATE, own)
    set_current_base(own, current)
    own.write_bytes(own.read_bytes()[:1000])
    assert find_base_by_sha256(tmp_path, sha256) is None
    make_current(tmp_path, current)
    assert read_base(current).sha256 == hash_tensors(OTHER)
    assert find_base_by_sha256(tmp_path, sha256) == own
    assert changed_tensors(read_base(own).tensors, STATE) == []


def test_atomic_write_replaces_a_file_at_the_end_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "new" / "file.txt"
    for before, after in ((None, "first"), ("first", "second")):
        with atomic_write(path) as temporary:
            temporary.write_text(after)
            assert temporary.suffix == path.suffix
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"), atomic_write(path) as temporary:
        temporary.write_text("third")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]
