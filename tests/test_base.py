"""Anybody's weights, as they come out of training scripts; and the bases that are kept here."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_mnist.disk.base import find_base, own_file, read_base, write_base
from lora_mnist.lora import changed_tensors, fingerprint

State = dict[str, Tensor]


@pytest.fixture
def state(tiny: TinyNet) -> State:
    return {name: tensor.clone() for name, tensor in tiny.state_dict().items()}


def other_net() -> TinyNet:
    torch.manual_seed(1)
    return TinyNet()


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def lightning(state: State) -> Any:
    """A checkpoint of somebody's LightningModule, which holds more than a network."""
    more = {"criterion.weight": torch.ones(7), "accuracy.tp": torch.zeros(3, dtype=torch.int64)}
    return {
        **{"epoch": 3, "global_step": 900, "pytorch-lightning_version": "2.4.0"},
        "state_dict": {**prefixed("model.")(state), **more},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}],
        "hyper_parameters": {"lr": 0.001, "model": "tiny"},
    }


FORMS: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: state,
    "ours": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "epoch": 3, "loss": torch.tensor(0.1)},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "lightning": lightning,
    "net.": prefixed("net."),
    "module.": prefixed("module."),
    "_orig_mod.model.": prefixed("_orig_mod.model."),
    "module. in model": lambda state: {"model": prefixed("module.")(state)},
    "a teacher beside it": lambda state: {
        **prefixed("student.")(state),
        "teacher.w": torch.ones(2),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_reads_what_training_scripts_save(tmp_path: Path, state: State, form: str) -> None:
    torch.save(FORMS[form](state), tmp_path / "mine.pt")
    net = other_net()
    base = read_base(tmp_path / "mine.pt", net)
    assert list(base.tensors) == list(state)
    assert changed_tensors(state, net.state_dict()) == []
    assert base.sha256 == fingerprint(state)


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
def test_reads_safetensors(tmp_path: Path, state: State, prefix: str) -> None:
    save_file(prefixed(prefix)(state), tmp_path / "mine.pt", {"format": "pt"})
    net = other_net()
    assert read_base(tmp_path / "mine.pt", net).sha256 == fingerprint(state)
    assert changed_tensors(state, net.state_dict()) == []


def test_reads_torchs_old_format(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "mine.pt", _use_new_zipfile_serialization=False)
    assert read_base(tmp_path / "mine.pt", other_net()).sha256 == fingerprint(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_becomes_float32(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "mine.pt")
    net = other_net()
    base = read_base(tmp_path / "mine.pt", net)
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == base.tensors[name].dtype == torch.float32
        assert torch.equal(tensor, state[name].to(dtype).float())
    assert base.sha256 == fingerprint(net.state_dict())


def test_buffers_belong_to_the_base(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 2))
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    fresh = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    base = read_base(tmp_path / "mine.pt", fresh)
    assert changed_tensors(net.state_dict(), fresh.state_dict()) == []
    assert base.tensors["1.num_batches_tracked"] == 1


def test_the_base_does_not_follow_the_network(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "mine.pt")
    net = other_net()
    base = read_base(tmp_path / "mine.pt", net)
    with torch.no_grad():
        net.linear1.weight.zero_()
    assert changed_tensors(state, base.tensors) == []
    assert changed_tensors(state, read_base(tmp_path / "mine.pt", net).tensors) == []


def test_a_file_that_changed_is_read_again(tmp_path: Path, state: State) -> None:
    path, other = tmp_path / "mine.pt", other_net().state_dict()
    found = []
    for number, tensors in enumerate((state, other), start=1):
        torch.save(tensors, path)
        os.utime(path, ns=(number, number))
        found.append(read_base(path, TinyNet()).sha256)
    assert found == [fingerprint(state), fingerprint(other)]


# --- what is refused -----------------------------------------------------------------------------


def without(*names: str) -> Callable[[State], Any]:
    return lambda state: {name: state[name] for name in state if name not in names}


def changed(name: str, tensor: Tensor) -> Callable[[State], Any]:
    return lambda state: {**state, name: tensor}


def endless() -> Any:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "missing": (
        without("linear2.bias"),
        "missing: linear2.bias; expected the 4 tensors such as linear1.weight of the configured ",
    ),
    "unexpected": (
        lambda state: {**state, **{f"head.{n}": torch.ones(1) for n in range(5)}},
        "unexpected: head.0, head.1, head.2 and 2 more; expected the 4 tensors",
    ),
    "shape": (
        changed("linear1.weight", torch.ones(5, 7)),
        "of another shape: linear1.weight 5x7 instead of 5x6; expected",
    ),
    "scalar": (
        changed("linear1.bias", torch.tensor(1.0)),
        "of another shape: linear1.bias scalar instead of 5; expected",
    ),
    "everything": (
        lambda state: {f"conv{n}.weight": torch.ones(1) for n in range(3)},
        "missing: linear1.weight, linear1.bias, linear2.weight and 1 more; "
        "unexpected: conv0.weight, conv1.weight, conv2.weight; expected the 4 tensors",
    ),
    "missing behind a prefix": (
        lambda state: prefixed("net.")(without("linear2.bias")(state)),
        "missing: linear2.bias; expected",
    ),
    "the first is missing behind a prefix": (
        lambda state: prefixed("net.")(without("linear1.weight")(state)),
        "missing: linear1.weight; expected",
    ),
    "NaN": (
        changed("linear2.bias", torch.tensor([0.0, float("nan"), 0.0])),
        "linear2.bias holds NaN or infinity; expected finite numbers",
    ),
    "infinity": (
        changed("linear2.bias", torch.tensor([0.0, float("inf"), 0.0])),
        "linear2.bias holds NaN or infinity; expected finite numbers",
    ),
    "integers": (
        changed("linear2.bias", torch.tensor([0, 1, 2])),
        "linear2.bias holds torch.int64; expected torch.float32",
    ),
    **{
        str(dtype): (
            changed("linear2.bias", torch.ones(3).to(dtype)),
            f"linear2.bias holds {dtype}; expected torch.float32",
        )
        for dtype in (torch.complex64, torch.bool, torch.uint16)
    },
    **{
        kind: (
            changed("linear2.bias", tensor),
            "linear2.bias is sparse, quantized, nested or empty; expected plain numbers",
        )
        for kind, tensor in {
            "sparse": torch.ones(3).to_sparse(),
            "empty": torch.ones(3, device="meta"),
        }.items()
    },
    "a dictionary that holds itself": (
        lambda state: endless(),
        "holds no tensors but model; expected a state_dict",
    ),
    "a list": (lambda state: list(state.values()), "holds a list; expected a state_dict"),
    "a tensor": (lambda state: torch.ones(2), "holds a Tensor; expected a state_dict"),
    "no tensors": (
        lambda state: {"epoch": 3, "loss": 0.1},
        "holds no tensors but epoch, loss; expected a state_dict",
    ),
    "nothing": (lambda state: {}, "holds no tensors but nothing; expected a state_dict"),
    "a network": (
        lambda state: other_net(),
        "damaged or something else (UnpicklingError); expected the weights of a network",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refuses_other_weights(tmp_path: Path, state: State, form: str) -> None:
    make, message = REFUSED[form]
    torch.save(make(state), tmp_path / "mine.pt")
    net = other_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read_base(tmp_path / "mine.pt", net)
    assert changed_tensors(before, net.state_dict()) == []


def test_a_count_is_not_cut_short(tmp_path: Path) -> None:
    net = nn.BatchNorm1d(3)
    for count, fits in ((7.0, True), (7.5, False), (float("nan"), False)):
        state = {**net.state_dict(), "num_batches_tracked": torch.tensor(count)}
        torch.save(state, tmp_path / "mine.pt")
        os.utime(tmp_path / "mine.pt", ns=(1, 1) if fits else (2, 2))
        if fits:
            assert read_base(tmp_path / "mine.pt", net).tensors["num_batches_tracked"] == 7
        else:
            with pytest.raises(ValueError, match="num_batches_tracked holds torch.float32"):
                read_base(tmp_path / "mine.pt", net)


def test_each_tensor_has_memory_of_its_own(tmp_path: Path, state: State) -> None:
    """A file may keep one number for all of a weight, or the negative of another's."""
    one = torch.tensor(0.5).expand(5, 6)
    torch.save(
        {**state, "linear1.weight": one, "linear1.bias": torch._neg_view(torch.ones(5))},
        tmp_path / "mine.pt",
    )
    base = read_base(tmp_path / "mine.pt", other_net())
    assert base.tensors["linear1.weight"].is_contiguous()
    assert torch.equal(base.tensors["linear1.weight"], torch.full((5, 6), 0.5))
    assert torch.equal(base.tensors["linear1.bias"], -torch.ones(5))


def test_a_network_without_weights_has_no_base(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="unexpected: linear1.weight.*the 0 tensors such as none"):
        read_base(tmp_path / "mine.pt", nn.Flatten())


class Trap:
    """What a pickle can do to whoever opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_no_code_in_a_pickle_runs(tmp_path: Path, state: State, plain: bool) -> None:
    content = {"state_dict": state, "more": Trap(tmp_path / "trapped")}
    if plain:
        (tmp_path / "mine.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="damaged or something else"):
        read_base(tmp_path / "mine.pt", other_net())
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("kind", ["torch", "safetensors", "empty", "text"])
def test_refuses_damaged_files(tmp_path: Path, state: State, kind: str) -> None:
    path = tmp_path / "mine.pt"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    whole = path.read_bytes()
    contents = {"empty": b"", "text": b"epoch,loss\n1,0.3\n"}
    path.write_bytes(contents.get(kind, whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=r"^damaged.*; expected the weights of a network"):
        read_base(path, other_net())


@pytest.mark.parametrize("name", ["none.pt", ""])
def test_says_what_the_system_says(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        read_base(tmp_path / name, other_net())


# --- the bases that are kept here ----------------------------------------------------------------


def test_a_base_is_kept_and_becomes_the_current_one(tmp_path: Path, state: State) -> None:
    folder = tmp_path / "base"
    current = folder / "mnist.ckpt"
    own = write_base(state, folder, "mnist", current)
    assert own == own_file(folder, "mnist", fingerprint(state))
    assert own.name == f"mnist-{fingerprint(state)[:12]}.ckpt"
    assert {path.name for path in folder.iterdir()} == {own.name, "mnist.ckpt"}
    for path in (own, current):
        net = other_net()
        assert read_base(path, net).sha256 == fingerprint(state)
    assert torch.load(own, weights_only=True)["state_dict"].keys() == state.keys()


def test_the_next_base_takes_the_place_of_the_current_one_alone(
    tmp_path: Path, state: State
) -> None:
    current, other = tmp_path / "mnist.ckpt", other_net().state_dict()
    first = write_base(state, tmp_path, "mnist", current)
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    second = write_base(other, tmp_path, "mnist", current)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert current.read_bytes() == second.read_bytes() != first.read_bytes()
    assert write_base(state, tmp_path, "mnist", current) == first
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert current.read_bytes() == first.read_bytes()
    for tensors, own in ((state, first), (other, second)):
        assert find_base(tmp_path, fingerprint(tensors)) == own
    assert find_base(tmp_path, "0" * 64) is None
    assert find_base(tmp_path / "none", "0" * 64) is None


def test_equal_tensors_give_equal_bytes(tmp_path: Path, state: State) -> None:
    """Wherever the file lies, and whatever else shares the tensors' memory."""
    large = torch.zeros(100, 6)
    large[:5] = state["linear1.weight"]
    views = {**state, "linear1.weight": large[:5].requires_grad_()}
    paths = [tmp_path / "a" / "x.ckpt", tmp_path / "b" / "another name.pt"]
    write_base(state, tmp_path / "kept", "mnist", paths[0])
    write_base(views, tmp_path / "kept too", "other", paths[1])
    contents = {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(contents) == 1
    assert len(contents.pop()) < 5_000


def test_a_base_that_cannot_be_kept_replaces_nothing(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = tmp_path / "mnist.ckpt"
    current.write_bytes(b"the old base")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_base(state, tmp_path / "file", "mnist", current)
    assert current.read_bytes() == b"the old base"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mnist.ckpt"}
