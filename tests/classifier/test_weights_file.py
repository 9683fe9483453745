"""Anybody's weights, as they come out of training scripts."""

import pickle
from pathlib import Path

import pytest
import torch
from helpers.nets import TinyNet
from safetensors.torch import save_file
from torch import nn

from lora_mnist.classifier.weights_file import load_weights, outputs_key, read_base
from lora_mnist.lora.base_state import changed_tensors, hash_tensors

#: Weights of two bases. No new network has them: its own lie between -1 and 1.
STATE = {name: tensor + 2 for name, tensor in TinyNet().state_dict().items()}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def write_and_read(content, folder):
    """What is read of a file that holds this."""
    torch.save(content, folder / "mine.pt")
    return read_base(folder / "mine.pt")


def test_load_weights_reads_what_training_scripts_save(tmp_path):
    """Lightning's: a network in two others, a loss with weights, and an optimizer."""
    tensors = {**prefixed("model._orig_mod.", STATE), "criterion.weight": torch.ones(7)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(5)}}}
    content = {"epoch": 3, "state_dict": tensors, "optimizer_states": [optimizer]}
    net = TinyNet()
    base = load_weights(net, write_and_read(content, tmp_path))
    assert list(base.tensors) == list(STATE)
    assert changed_tensors(STATE, net.state_dict()) == []
    assert base.sha256 == hash_tensors(STATE)
    with torch.no_grad():
        net.linear1.weight.zero_()
    assert changed_tensors(STATE, base.tensors) == []  # the base does not follow the network


def test_load_weights_takes_one_of_several_networks_by_name(tmp_path):
    file = write_and_read({**STATE, "ema": OTHER, "optimizer": {"state": {}}}, tmp_path)
    net = TinyNet()
    with pytest.raises(ValueError, match="holds 2 networks; .* of '', ema."):
        load_weights(net, file)
    with pytest.raises(ValueError, match=r"^base_prefix=nope\.: expected one of "):
        load_weights(net, file, "nope.")
    for prefix, expected in (("", STATE), ("ema.", OTHER)):
        load_weights(net, file, prefix)
        assert changed_tensors(expected, net.state_dict()) == []


def test_load_weights_converts_another_precision(tmp_path):
    """Buffers too: a counter may have become half precision with the rest."""
    net, fresh = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    net(torch.randn(8, 2))
    saved = {name: tensor.half() for name, tensor in net.state_dict().items()}
    base = load_weights(fresh, write_and_read(saved, tmp_path))
    assert base.tensors["1.num_batches_tracked"] == 1
    expected = {name: saved[name].to(tensor.dtype) for name, tensor in net.state_dict().items()}
    assert changed_tensors(expected, fresh.state_dict()) == []
    assert base.sha256 == hash_tensors(expected)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (dict([*STATE.items()][:-1]), r'Missing key\(s\) in state_dict: "linear2.bias"'),
        (
            prefixed("my", STATE),
            # What is configured is what does not fit, and no remedy.
            r'in place of net._target_=\S+; .*Missing key\(s\) in state_dict: "linear1.weight"',
        ),
        (
            {**STATE, "linear2.weight": torch.ones(7, 5), "linear2.bias": torch.ones(7)},
            r" net: net.num_classes=7 has as many outputs; .*size mismatch for linear2.weight",
        ),
        ({**STATE, "linear1.weight": torch.ones(5, 1)}, "size mismatch for linear1.weight"),
        ({**STATE, "linear2.bias": torch.ones(3).double() * 1e300}, "linear2.bias holds NaN or "),
        ({**STATE, "linear1.weight": torch.ones(5, 6).char()}, "linear1.weight is torch.int8"),
        ({"epoch": 3, "loss": 0.1}, "holds a dict without tensors"),
        (TinyNet(), "holds helpers.nets.TinyNet, which is not loaded"),
    ],
)
def test_load_weights_refuses_other_weights(tmp_path, content, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        load_weights(
            TinyNet(), write_and_read(content, tmp_path), arguments={"_target_": "lora_mnist.MLP"}
        )
    assert "\n" not in str(caught.value)


class Trap:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


@pytest.mark.parametrize("kind", ["half", "half safetensors", "trap", "pickle", "ring"])
def test_read_base_refuses_damaged_files_and_nothing_in_them_runs(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, trap = Path("mine.pt"), {**STATE, "more": Trap()}
    if kind == "half safetensors":
        save_file(STATE, path)
    else:
        ring: dict = {}
        ring["itself"] = ring
        torch.save({"trap": trap, "ring": ring}.get(kind, STATE), path)
    whole = path.read_bytes()
    contents = {"trap": whole, "ring": whole, "pickle": pickle.dumps(trap, protocol=2)}
    path.write_bytes(contents.get(kind, whole[: len(whole) // 2]))
    start = "holds " if kind == "trap" else "damaged, or "
    with pytest.raises(ValueError, match=rf"^{start}.*; expected .*weights"):
        load_weights(TinyNet(), read_base(path))
    assert not Path("trapped").exists()


def test_the_number_of_outputs_has_a_key_where_the_network_takes_one():
    for target in ("lora_mnist.MLP", "torchvision.models.resnet18"):
        assert outputs_key({"_target_": target}) == "net.num_classes"
    assert outputs_key({"_target_": "helpers.nets.TinyNet"}) is None
