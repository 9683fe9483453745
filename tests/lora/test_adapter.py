import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.classifier.net import MLP
from lora_mnist.lora import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    add_lora,
    fingerprint,
    has_lora,
    load_adapter,
    lora_disabled,
    lora_names,
    lora_parameters,
    read_base_sha256,
    save_adapter,
)


def base() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def adapted() -> nn.Module:
    net = add_lora(base(), rank=2, alpha=3)
    for parameter in lora_parameters(net):
        nn.init.normal_(parameter)
    return net


@pytest.fixture
def folder(adapted: nn.Module, tmp_path: Path) -> Path:
    return save_adapter(adapted, tmp_path / "adapter")


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def small_mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(in_features=12, hidden_sizes=[9, 7], num_classes=4)


IMAGES = torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(2))
LINEAR = ["linear1", "linear2", "linear3"]


def test_round_trip(adapted: nn.Module, folder: Path) -> None:
    loaded = load_adapter(base(), folder)
    assert torch.equal(loaded(X), adapted(X))
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}


def test_several_adapters(tmp_path: Path) -> None:
    x = IMAGES
    folders = {}
    for name, rank in {"a": 1, "b": 2}.items():
        net = add_lora(small_mlp(), rank=rank)
        for parameter in lora_parameters(net):
            nn.init.normal_(parameter)
        folders[name] = save_adapter(net, tmp_path / name)
    net = small_mlp()
    load_adapter(net, folders["a"], name="a", weight=0.5)
    load_adapter(net, folders["b"], name="b")
    assert lora_names(net) == ["a", "b"]
    expected = small_mlp()
    for name, weight in {"a": 0.5, "b": 1.0}.items():
        one = load_adapter(small_mlp(), folders[name])
        for layer in LINEAR:
            update = getattr(one, layer).weight - getattr(small_mlp(), layer).weight
            getattr(expected, layer).weight.data += weight * update
    torch.testing.assert_close(net(x), expected(x), rtol=1e-5, atol=1e-5)
    with lora_disabled(net, "a"):
        torch.testing.assert_close(net(x), load_adapter(small_mlp(), folders["b"])(x))
    with pytest.raises(ValueError, match="carries 2 adapters; expected one, or its name"):
        save_adapter(net, tmp_path / "none")
    with pytest.raises(ValueError, match="name=c: expected one of a, b"):
        save_adapter(net, tmp_path / "none", name="c")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="name=a: expected another name than a, b"):
        load_adapter(net, folders["b"], name="a")
    save_adapter(net, tmp_path / "half", name="a")
    with lora_disabled(net, "b"):
        torch.testing.assert_close(load_adapter(small_mlp(), tmp_path / "half")(x), net(x))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", True])
def test_refuses_weights(folder: Path, weight: Any) -> None:
    net = base()
    with pytest.raises(ValueError, match=f"weight={weight}: expected a finite number"):
        load_adapter(net, folder, weight=weight)
    assert not has_lora(net)


def test_the_same_adapter_is_the_same_file(adapted: nn.Module, tmp_path: Path) -> None:
    metadata = {"dataset": "mnist", "a": "ä", "z": '"'}
    folders = [save_adapter(adapted, tmp_path / str(n), metadata=metadata) for n in range(8)]
    assert len({(folder / WEIGHTS_NAME).read_bytes() for folder in folders}) == 1
    with safe_open(folders[0] / WEIGHTS_NAME, "pt") as file:
        assert file.metadata().items() >= metadata.items()


def test_metadata(adapted: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        expected = {"format": "pt", "base_sha256": fingerprint(base().state_dict())}
        assert file.metadata() == {**expected, "dataset": "mnist"}
    other = base()
    with torch.no_grad():
        other.linear1.bias[0] += 1
    here = fingerprint(other.state_dict())
    message = f"made for the base {expected['base_sha256']} on mnist, this one is {here}"
    with pytest.raises(ValueError, match=message):
        load_adapter(other, tmp_path)
    load_adapter(base(), tmp_path)
    assert not caplog.records
    save_file(load_file(tmp_path / WEIGHTS_NAME), tmp_path / WEIGHTS_NAME)  # as PEFT would
    load_adapter(base(), tmp_path)
    assert "does not say which base it was made for: not checked" in caplog.text


def test_another_base_is_refused_by_fingerprint(folder: Path) -> None:
    other = base()
    with torch.no_grad():
        other.linear2.bias[0] += 1
    with pytest.raises(ValueError, match="made for the base [0-9a-f]{64}, this one is "):
        load_adapter(other, folder)
    assert not has_lora(other)
    assert has_lora(load_adapter(other, folder, allow_other_base=True))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def retensor(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    for key, value in changes.items():
        name = f"base_model.model.{key.replace('__', '.')}"
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS_NAME).unlink(), "expected a readable adapter_model.safetensors"),
        (lambda f: (f / CONFIG_NAME).unlink(), "expected a readable adapter_config.json"),
        (lambda f: (f / CONFIG_NAME).write_text("{"), "expected a readable adapter_config.json"),
        (
            lambda f: (f / WEIGHTS_NAME).write_bytes((f / WEIGHTS_NAME).read_bytes()[:-8]),
            "expected a readable adapter_model.safetensors",
        ),
        (lambda f: rewrite(f, peft_type="IA3"), "expected peft_type LORA"),
        (lambda f: rewrite(f, use_dora=True), "use_dora=True is not supported; expected False"),
        (lambda f: rewrite(f, bias="all"), "bias=all is not supported; expected none"),
        (lambda f: rewrite(f, modules_to_save=["linear2"]), "modules_to_save=.* is not supported"),
        (lambda f: rewrite(f, r=3), r"linear1.lora_A.weight has shape \(2, 6\), expected \(3, 6\)"),
        (lambda f: rewrite(f, lora_alpha=-1), "alpha=-1: expected a finite number > 0"),
        (lambda f: retensor(f, linear1__lora_B__weight=None), "linear1.lora_B.weight is missing"),
        (
            lambda f: retensor(f, linear9__lora_B__weight=X),
            "unexpected tensor .*linear9.* the model has no such layer that can be adapted",
        ),
        (lambda f: retensor(f, other=X), "unexpected tensor base_model.model.other"),
        *(
            (
                lambda f, bad=bad: retensor(f, linear1__lora_A__weight=torch.full((2, 6), bad)),
                "linear1.lora_A.weight holds NaN or infinity",
            )
            for bad in (torch.nan, torch.inf, -torch.inf)
        ),
        (
            lambda f: retensor(f, linear2__lora_A__weight=None, linear2__lora_B__weight=None),
            "the tensors of linear2 are missing, which target_modules names",
        ),
        (
            lambda f: rewrite(f, target_modules=["linear1"]),
            r"unexpected tensors of linear2, which target_modules=\['linear1'\] omits",
        ),
        (
            lambda f: retensor(f, linear1__lora_A__weight=torch.ones(2, 6, dtype=torch.int32)),
            "linear1.lora_A.weight holds torch.int32, expected floating-point",
        ),
        (
            lambda f: retensor(
                f, linear1__lora_A__weight=torch.full((2, 6), 1e300, dtype=torch.float64)
            ),
            "holds NaN or infinity",
        ),
        (
            lambda f: (f / WEIGHTS_NAME).rename(f / "adapter_model.bin"),
            "adapter_model.bin is a pickle",
        ),
        (
            lambda f: torch.save({}, f / WEIGHTS_NAME),
            "expected a readable adapter_model.safetensors",
        ),
        (lambda f: (f / WEIGHTS_NAME).write_bytes(b""), "expected a readable adapter_model"),
        (lambda f: save_file({}, f / WEIGHTS_NAME), "holds no tensor"),
        (lambda f: rewrite(f, r="two"), "r=two: expected an integer in adapter_config.json"),
        (lambda f: rewrite(f, r=None), "expected the key r in adapter_config.json"),
        (lambda f: rewrite(f, lora_alpha="x"), "alpha=x: expected a finite number > 0"),
        (lambda f: rewrite(f, rank_pattern=[1]), r"rank_pattern=\[1\]: expected a mapping"),
        (lambda f: rewrite(f, alpha_pattern={"(": 1}), "alpha_pattern: expected regular expressi"),
        (lambda f: rewrite(f, use_rslora="false"), "use_rslora=false: expected true or false in"),
        (lambda f: rewrite(f, target_modules=[1]), r"target_modules=\[1\]: expected a list or"),
        (lambda f: rewrite(f, lora_bias=True), "lora_bias=True is not supported"),
        (lambda f: rewrite(f, layers_to_transform=[0]), r"layers_to_transform=\[0\] is not supp"),
        (lambda f: rewrite(f, use_next_year=True), "use_next_year=True is not supported"),
        (lambda f: rewrite(f, init_lora_weights="olora"), "init_lora_weights=olora is not supp"),
    ],
)
def test_refuses_a_damaged_or_foreign_adapter(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    net = base()
    with pytest.raises(ValueError, match=message):
        load_adapter(net, folder)
    assert not has_lora(net)


def test_refuses_to_save_what_is_no_single_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        save_adapter(base(), tmp_path)
    with pytest.raises(ValueError, match="carries 2 adapters; expected one"):
        save_adapter(add_lora(add_lora(base())), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_bases_name_is_read_without_the_tensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fingerprint(base().state_dict())
    monkeypatch.setattr(torch, "frombuffer", None)
    assert read_base_sha256(folder) == expected
    assert read_base_sha256(str(folder)) == expected


def test_an_adapter_that_does_not_name_its_base(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
    assert read_base_sha256(folder) is None


@pytest.mark.parametrize("bad", ["", "../../etc", "A" * 64, "0" * 63 + "\n"])
def test_what_is_no_fingerprint_is_refused(folder: Path, bad: str) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME, {"base_sha256": bad})
    with pytest.raises(ValueError, match=r"base_sha256=.*: expected 64 hexadecimal digits"):
        read_base_sha256(folder)
    with pytest.raises(ValueError, match="expected a readable adapter_model.safetensors"):
        read_base_sha256(folder / "nowhere")


def large(folder: Path) -> None:
    """Of a rank that nobody needs, and no room on disk."""
    rank = 10**7
    shapes = {"linear1": (5, 6), "linear2": (3, 5)}
    header, end = {}, 0
    for layer, (rows, columns) in shapes.items():
        for factor, shape in {"lora_A": (rank, columns), "lora_B": (rows, rank)}.items():
            start, end = end, end + 4 * shape[0] * shape[1]
            key = f"base_model.model.{layer}.{factor}.weight"
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    (folder / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(folder / WEIGHTS_NAME, 8 + len(text) + end)
    rewrite(folder, r=rank)


def long_header(folder: Path) -> None:
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes((2**40).to_bytes(8, "little") + content[8:])


def replace_config(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda f: replace_config(f, "[" * 5000 + "]" * 5000), "expected a readable adapter_conf"),
        (lambda f: replace_config(f, '{"a":' * 50_000), "expected a readable adapter_config.json"),
        (lambda f: replace_config(f, " " * 5_000_000), "more than 4,194,304 bytes"),
        (lambda f: rewrite(f, lora_alpha=10**400), "alpha=10000.*: expected a finite number > 0"),
        (lambda f: replace_config(f, '{"r": ' + "9" * 5000 + "}"), "expected a readable adapter_c"),
        (lambda f: rewrite(f, r=10**400), r"has shape \(2, 6\), expected \(1000"),
        (lambda f: rewrite(f, use_rslora="false"), "use_rslora=false: expected true or false"),
        (lambda f: rewrite(f, use_dora="false"), "use_dora=false is not supported"),
        (lambda f: rewrite(f, alpha_pattern={"((((.*)*)*)*)*x": 1}), "simple expression"),
        (lambda f: rewrite(f, alpha_pattern=dict.fromkeys(map(str, range(10**5)), 1)), "too long"),
        (lambda f: rewrite(f, alpha_pattern={"linear1": [["x" * 10**6]]}), "alpha=.*: expected"),
        (lambda f: rewrite(f, peft_type={"a": [1]}), "expected peft_type LORA"),
        (lambda f: rewrite(f, target_modules={"a": 1}), "expected a list or a string"),
        (lambda f: rewrite(f, **{"a\x1b[2Jb": 1}), r"a\\x1b\[2Jb=1 is not supported"),
        (lambda f: rewrite(f, bias="x\ny"), r"bias=x\\ny is not supported"),
        (long_header, "its header is too long"),
        (large, "bytes are too many for the model's layers"),
        (
            lambda f: save_file(load_file(f / WEIGHTS_NAME), f / WEIGHTS_NAME, {"a": "x" * 2**23}),
            "its header is too long",
        ),
        (
            lambda f: save_file(
                load_file(f / WEIGHTS_NAME), f / WEIGHTS_NAME, {"base_sha256": "\x1b[2J" * 1000}
            ),
            r"made for the base \\x1b\[2J",
        ),
        (lambda f: pipe(f / WEIGHTS_NAME), "expected a readable adapter_model.safetensors"),
        (lambda f: pipe(f / CONFIG_NAME), "expected a readable adapter_config.json"),
    ],
)
def test_a_strangers_adapter_is_refused_at_once(folder: Path, attack: Any, message: str) -> None:
    attack(folder)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=message) as refusal:
        load_adapter(base(), folder)
    assert time.perf_counter() - started < 1
    text = str(refusal.value)
    assert len(text) < 800
    assert text.isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "((((.*)*)*)*)*x"},
        {"target_modules": "("},
        {"target_modules": "a{99999999999999}"},
        {"exclude_modules": ".*" * 100 + "x"},
        {"rank_pattern": {"((((.*)*)*)*)*x": 9}},
        {"rank_pattern": {"(" * 20_000: 9}},
    ],
)
def test_a_strangers_expressions_are_not_evaluated(
    adapted: nn.Module, folder: Path, changes: dict[str, Any]
) -> None:
    """The layers and their ranks stand in the tensors."""
    rewrite(folder, **changes)
    assert torch.equal(load_adapter(base(), folder)(X), adapted(X))
