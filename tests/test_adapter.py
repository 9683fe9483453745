import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist import (
    MLP,
    add_lora,
    load_adapter,
    lora_disabled,
    lora_names,
    lora_parameters,
    save_adapter,
)
from lora_mnist.adapter import WEIGHTS_NAME, changed_tensors, fingerprint
from lora_mnist.lora import has_lora, lora_layers
from lora_mnist.peft_config import CONFIG_NAME


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


class ConvNet(nn.Module):
    """Convolutions of several geometries, one name the end of another, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 3, (3, 2), stride=2), nn.ReLU())
        self.block.add_module("conv", nn.Conv2d(3, 5, 1, bias=False))
        self.linear = nn.Linear(5 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.block(torch.relu(self.conv(x))).flatten(1))


def small_mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(in_features=12, hidden_sizes=[9, 7], num_classes=4)


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet()


IMAGES = {
    small_mlp: torch.randn(6, 1, 3, 4, generator=torch.Generator().manual_seed(2)),
    small_cnn: torch.randn(6, 1, 8, 7, generator=torch.Generator().manual_seed(2)),
}


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_mlp, {}),
        (small_mlp, {"rank": 4, "alpha": 3.0, "use_rslora": True, "dropout": 0.5}),
        (small_mlp, {"targets": "linear[13]", "init": "kaiming"}),
        (small_mlp, {"rank_pattern": {"linear2": 3}, "alpha_pattern": {"linear1": 0.5}}),
        (small_mlp, {"init": "pissa", "rank": 2}),
        (
            small_mlp,
            {"init": "pissa", "rank": 3, "use_rslora": True, "alpha_pattern": {"linear1": 2.0}},
        ),
        (small_cnn, {"targets": ".*(conv|linear|0)", "rank": 2}),
        (small_cnn, {"targets": "conv", "rank": 2}),  # and not block.conv
        (small_cnn, {"targets": ".*conv", "rank_pattern": {"^conv": 3}}),
        (small_cnn, {"targets": ".*conv", "init": "pissa", "rank": 3, "alpha": 2.0}),
    ],
)
def test_our_adapters_load_here_and_in_peft(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"targets": "linear[0-9]", **options}
    ours = randomized(add_lora(make(), **options)).eval()
    save_adapter(ours, tmp_path)
    x = IMAGES[make]
    assert not torch.allclose(ours(x), make()(x), atol=1e-2)
    again = load_adapter(make(), tmp_path)
    torch.testing.assert_close(again(x), ours(x), rtol=1e-5, atol=1e-5)
    theirs = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)
    adapted = {name for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {f"base_model.model.{name}" for name, _ in lora_layers(ours)}


LINEAR = ["linear1", "linear2", "linear3"]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_mlp, {"target_modules": LINEAR}),
        (small_mlp, {"target_modules": LINEAR, "r": 3, "lora_alpha": 5}),
        (small_mlp, {"target_modules": LINEAR, "r": 4, "use_rslora": True}),
        (small_mlp, {"target_modules": ["linear2"], "lora_dropout": 0.3}),
        (small_mlp, {"target_modules": r"linear\d", "exclude_modules": ["linear1"]}),
        (small_mlp, {"target_modules": "all-linear"}),
        (
            small_mlp,
            {
                **{"target_modules": LINEAR, "r": 2, "use_rslora": True},
                "rank_pattern": {"linear[12]": 3},
                "alpha_pattern": {"^linear3": 1, ".*1": 20},
            },
        ),
        (small_cnn, {"target_modules": ["conv", "linear", "0"], "r": 2}),
        (small_cnn, {"target_modules": ["conv"], "rank_pattern": {"block.conv": 3}}),
    ],
)
def test_their_adapters_load_here(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = randomized(get_peft_model(make(), LoraConfig(**options))).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(make(), tmp_path)
    x = IMAGES[make]
    assert not torch.allclose(ours(x), make()(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_pissa_trains_as_in_peft(tmp_path: Path) -> None:
    """The same steps from the same start, though the base here is never replaced by a residual."""
    x = IMAGES[small_mlp]
    ours = add_lora(small_mlp(), rank=2, alpha=3.0, init="pissa")
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=LINEAR)
    theirs = get_peft_model(small_mlp(), config)
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(
        ValueError, match="init_lora_weights=pissa is not supported: .* a base that"
    ):
        load_adapter(small_mlp(), tmp_path)


def test_several_adapters(tmp_path: Path) -> None:
    x = IMAGES[small_mlp]
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
        (
            lambda f: retensor(f, linear9__lora_B__weight=X),
            "linear9 is no linear or conv2d layer of the model",
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
            "tensor base_model.model.linear2.lora_A.weight is missing",
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
        (lambda f: rewrite(f, r="two"), r"has shape \(2, 6\), expected \('two', 6\)"),
        (lambda f: rewrite(f, r=None), "expected the key r in adapter_config.json"),
        (lambda f: rewrite(f, lora_alpha="x"), "alpha=x: expected a finite number > 0"),
        (lambda f: rewrite(f, rank_pattern=[1]), r"rank_pattern=\[1\]: expected a mapping"),
        (lambda f: rewrite(f, rank_pattern={"(": 1}), r"\(: expected a regular expression"),
        (lambda f: rewrite(f, target_modules="("), r"\(: expected a regular expression"),
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


@pytest.mark.parametrize("option", [{"dilation": 2}, {"padding_mode": "circular", "padding": 1}])
def test_what_peft_would_compute_wrongly_is_told(option: dict[str, Any], tmp_path: Path) -> None:
    net = add_lora(nn.Sequential(nn.Conv2d(1, 2, 3, **option)), targets="0")
    with pytest.warns(UserWarning, match=f"0 has {next(iter(option))}=.*, which PEFT ignores"):
        save_adapter(net, tmp_path / "adapter")
