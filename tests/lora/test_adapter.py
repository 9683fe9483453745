import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, randomize
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.lora import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    add_lora,
    fingerprint,
    has_lora,
    load_adapter,
    lora_disabled,
    lora_names,
    read_base_sha256,
    save_adapter,
    set_lora_scale,
)


def base(change: float = 0.0) -> TinyNet:
    torch.manual_seed(0)
    net = TinyNet()
    with torch.no_grad():
        net.linear1.bias[0] += change
    return net


@pytest.fixture
def adapted() -> nn.Module:
    return randomize(add_lora(base(), rank=2, alpha=3))


@pytest.fixture
def folder(adapted: nn.Module, tmp_path: Path) -> Path:
    return save_adapter(adapted, tmp_path / "adapter")


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def test_round_trip(adapted: nn.Module, folder: Path, tmp_path: Path) -> None:
    loaded = load_adapter(base(), folder)
    assert torch.equal(loaded(X), adapted(X))
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}
    again = save_adapter(loaded, tmp_path / "again")
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_several_adapters_at_several_scales(tmp_path: Path) -> None:
    folders = {
        name: save_adapter(randomize(add_lora(base(), rank=rank)), tmp_path / name)
        for name, rank in {"a": 1, "b": 2}.items()
    }
    net = load_adapter(base(), folders["a"], name="a", scale=0.5)
    load_adapter(net, folders["b"], name="b")
    assert lora_names(net) == ["a", "b"]
    expected = base()
    for name, scale in {"a": 0.5, "b": 1.0}.items():
        one = load_adapter(base(), folders[name])
        for layer in ("linear1", "linear2"):
            update = getattr(one, layer).weight - getattr(base(), layer).weight
            getattr(expected, layer).weight.data += scale * update
    torch.testing.assert_close(net(X), expected(X), rtol=1e-5, atol=1e-5)
    with lora_disabled(net, "a"):
        assert torch.equal(net(X), load_adapter(base(), folders["b"])(X))
    with pytest.raises(ValueError, match="name=None: expected one of the model's adapters: a, b"):
        save_adapter(net, tmp_path / "none")
    with pytest.raises(ValueError, match="name=c: expected one of a, b"):
        save_adapter(net, tmp_path / "none", name="c")
    with pytest.raises(ValueError, match="b: name=a: expected another name than a, b"):
        load_adapter(net, folders["b"], name="a")
    with pytest.raises(ValueError, match="b: scale=nan: expected a finite number"):
        load_adapter(net, folders["b"], scale=float("nan"))
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        save_adapter(base(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_adapter_is_saved_as_trained(
    adapted: nn.Module, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_lora_scale(adapted, 0)
    again = save_adapter(adapted, tmp_path / "again")
    assert "saved as trained, without its scale" in caplog.text
    assert (again / WEIGHTS_NAME).read_bytes() == (folder / WEIGHTS_NAME).read_bytes()


def test_the_same_adapter_is_the_same_file(adapted: nn.Module, tmp_path: Path) -> None:
    metadata = {"dataset": "mnist", "a": "ä", "z": '"\\', "empty": ""}
    folders = [save_adapter(adapted, tmp_path / str(n), metadata=metadata) for n in range(8)]
    assert len({(folder / WEIGHTS_NAME).read_bytes() for folder in folders}) == 1
    with safe_open(folders[0] / WEIGHTS_NAME, "pt") as file:
        sha256 = fingerprint(base().state_dict())
        assert file.metadata() == {"format": "pt", "base_sha256": sha256, **metadata}
    assert read_base_sha256(folders[0]) == sha256


def test_another_base_is_refused_by_fingerprint(adapted: nn.Module, tmp_path: Path) -> None:
    save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    other = base(change=1)
    here, there = (fingerprint(net.state_dict()) for net in (other, base()))
    with pytest.raises(ValueError, match=f"made for the base {there} on mnist, this one is {here}"):
        load_adapter(other, tmp_path)
    assert not has_lora(other)
    assert has_lora(load_adapter(other, tmp_path, allow_other_base=True))


def test_an_adapter_that_does_not_name_its_base(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)  # as PEFT would
    assert read_base_sha256(folder) is None
    assert has_lora(load_adapter(base(), folder))
    assert "does not say which base it was made for: not checked" in caplog.text


@pytest.mark.parametrize("bad", ["", "../../etc", "A" * 64, "0" * 63 + "\n"])
def test_what_is_no_fingerprint_is_refused(folder: Path, bad: str) -> None:
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME, {"base_sha256": bad})
    with pytest.raises(ValueError, match=r"base_sha256=[^:]*: expected 64 hexadecimal digits"):
        read_base_sha256(folder)
    with pytest.raises(ValueError, match="expected a readable adapter_model.safetensors"):
        read_base_sha256(folder / "nowhere")


def rewrite(**changes: Any) -> Any:
    def damage(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def retensor(**changes: torch.Tensor | None) -> Any:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        for key, value in changes.items():
            name = f"base_model.model.{key.replace('__', '.')}.weight"
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value
        save_file(tensors, folder / WEIGHTS_NAME)

    return damage


def write(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


UNREADABLE = "expected a readable adapter_model.safetensors"
NO_CONFIG = "expected a readable adapter_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS_NAME).unlink(), UNREADABLE),
        (lambda f: torch.save({}, f / WEIGHTS_NAME), UNREADABLE),
        (write(WEIGHTS_NAME, b""), UNREADABLE),
        (lambda f: write(WEIGHTS_NAME, (f / WEIGHTS_NAME).read_bytes()[:-8])(f), UNREADABLE),
        (lambda f: (f / WEIGHTS_NAME).rename(f / "adapter_model.bin"), "is a pickle"),
        (lambda f: save_file({}, f / WEIGHTS_NAME), "holds no tensor"),
        (lambda f: (f / CONFIG_NAME).unlink(), NO_CONFIG),
        (write(CONFIG_NAME, b"{"), NO_CONFIG),
        (write(CONFIG_NAME, b"[" * 5000), NO_CONFIG),
        (rewrite(peft_type="IA3"), "expected peft_type LORA"),
        (rewrite(use_dora=True), "use_dora=True is not supported; expected False"),
        (rewrite(bias="all"), "bias=all is not supported; expected none"),
        (rewrite(modules_to_save=["linear2"]), "modules_to_save=.* is not supported"),
        (rewrite(layers_to_transform=[0]), r"layers_to_transform=\[0\] is not supported"),
        (rewrite(use_next_year=True), "use_next_year=True is not supported"),
        (rewrite(init_lora_weights="olora"), "init_lora_weights=olora is not supported"),
        (rewrite(r=3), r"linear1 has shape \(2, 6\), expected \(3, 6\)"),
        (rewrite(r="two"), "r=two: expected an integer in adapter_config.json"),
        (rewrite(r=None), "r=None: expected an integer in adapter_config.json"),
        (rewrite(lora_alpha=-1), "alpha=-1: expected a finite number > 0"),
        (rewrite(lora_alpha="x"), "lora_alpha=x: expected a number"),
        (rewrite(rank_pattern=[1]), r"rank_pattern=\[1\]: expected a mapping"),
        (rewrite(alpha_pattern={".*1": 1}), r"alpha_pattern={.*1: 1}: expected a layer's name"),
        (rewrite(use_rslora="false"), "use_rslora=false: expected true or false in"),
        (rewrite(target_modules=7), "target_modules=7: expected a string or a list"),
        (rewrite(target_modules=["linear1"]), r"=\['linear1'\] contradicts tensors of linear2"),
        (
            retensor(linear2__lora_A=None, linear2__lora_B=None),
            r"target_modules=\['linear1', 'linear2'\] contradicts no tensors of linear2",
        ),
        (retensor(linear1__lora_B=None), "linear1.lora_B.weight is missing"),
        (retensor(linear9__lora_B=X), "unexpected tensor .*linear9.* no such layer that can be"),
        (retensor(linear1__lora_A=torch.ones(6, 2)), "linear1 has shape"),
        (retensor(linear1__lora_A=torch.tensor(1.0)), "linear1 has shape"),
        (retensor(linear1__lora_A=torch.ones(2, 6).int()), "expected numbers, found torch.int32"),
        *(
            (retensor(linear1__lora_A=torch.full((2, 6), bad)), "linear1.* holds NaN or infinity")
            for bad in (torch.nan, -torch.inf)
        ),
        (
            retensor(linear1__lora_A=torch.full((2, 6), 1e300, dtype=torch.float64)),
            "holds NaN or infinity",
        ),
    ],
)
def test_refuses_a_damaged_or_foreign_adapter(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    net = base()
    with pytest.raises(ValueError, match=message) as refusal:
        load_adapter(net, folder)
    assert str(refusal.value).startswith(f"{folder}: ")
    assert "\n" not in str(refusal.value)
    assert not has_lora(net)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "((((.*)*)*)*)*x"},
        {"target_modules": "("},
        {"exclude_modules": ".*" * 100 + "x"},
        {"rank_pattern": {"((((.*)*)*)*)*x": 9}},
    ],
)
def test_a_strangers_expressions_are_not_evaluated(
    adapted: nn.Module, folder: Path, changes: dict[str, Any]
) -> None:
    """The layers and their ranks stand in the tensors."""
    rewrite(**changes)(folder)
    assert torch.equal(load_adapter(base(), folder)(X), adapted(X))
