import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist import add_lora, load_adapter, lora_parameters, save_adapter
from lora_mnist.adapter import CONFIG_NAME, WEIGHTS_NAME, changed_tensors, fingerprint
from lora_mnist.lora import has_lora


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


def test_round_trip(adapted: nn.Module, folder: Path) -> None:
    loaded = load_adapter(base(), folder)
    assert torch.equal(loaded(X), adapted(X))
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}


def test_loads_in_peft(adapted: nn.Module, folder: Path) -> None:
    theirs = PeftModel.from_pretrained(base(), str(folder)).eval()
    torch.testing.assert_close(theirs(X), adapted(X), rtol=1e-5, atol=1e-5)


def test_loads_from_peft(tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["linear1"], init_lora_weights=False)
    theirs = get_peft_model(base(), config).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(base(), tmp_path)
    torch.testing.assert_close(ours(X), theirs(X), rtol=1e-5, atol=1e-5)


def test_fingerprint_sees_every_difference() -> None:
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, 3)}
    variants = [
        state,
        {**state, "a": torch.tensor([-0.0, 1.0])},
        {**state, "b": torch.ones(3, 2)},
        {**state, "a": state["a"].double()},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
    ]
    prints = [fingerprint(variant) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert all(len(p) == 64 for p in prints)
    assert fingerprint({"b": state["b"].clone(), "a": state["a"].clone()}) == prints[0]
    assert [changed_tensors(state, variant) for variant in variants] == [
        *([], ["a"], ["b"], ["a"], ["b", "c"], ["b"])
    ]


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
        (lambda f: retensor(f, linear9__lora_B__weight=X), "linear9 is no linear layer"),
        (lambda f: retensor(f, other=X), "unexpected tensor base_model.model.other"),
        (
            lambda f: retensor(f, linear1__lora_A__weight=torch.full((2, 6), torch.nan)),
            "linear1.lora_A.weight holds NaN or infinity",
        ),
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
