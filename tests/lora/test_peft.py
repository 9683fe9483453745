import copy

import pytest
import torch
from helpers.nets import made, randomize
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.lora.adapter import load_adapter, read_metadata, save_adapter
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import (
    KINDS,
    add_lora,
    add_offset,
    lora_disabled,
    merge_lora,
    remove_lora,
    set_lora_offset,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.peft_lora import WEIGHTS_NAME
from lora_mnist.lora.weight import adapted_weights


@pytest.fixture(scope="module")
def peft():
    """Imported late: it takes seconds, in a worker that runs none of these tests too."""
    return pytest.importorskip("peft", reason="the extra peft is not installed")


def base(kind):
    return made(kind)[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"rank": 4, "alpha": 3.0, "use_rslora": True, "dropout": 0.5}),
        ("linear", {"rank_pattern": {"linear2": 3}}),
        ("convolutions", {"target_modules": "conv"}),  # and not block.conv
        ("convolutions", {"target_modules": ".*conv", "init": "pissa", "rank": 3, "alpha": 2.0}),
        ("embedding", {"target_modules": ["0"], "rank": 2, "init": "pissa"}),
    ],
)
@pytest.mark.parametrize("scale", [-0.75, 0])
@pytest.mark.filterwarnings("error:PEFT has no adapter")
def test_adapters_of_ours_load_in_peft(kind, options, scale, tmp_path, peft):
    x = made(kind)[1]
    ours = randomize(add_lora(base(kind), **{"target_modules": ".*", **options}))
    set_lora_scale(ours, scale)
    save_adapter(ours, tmp_path)
    assert torch.allclose(ours(x), base(kind)(x), atol=1e-2) == (scale == 0)
    theirs = peft.PeftModel.from_pretrained(base(kind), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)
    adapted = {name for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {f"base_model.model.{name}" for name in adapted_weights(ours)}


@pytest.mark.parametrize("init", KINDS)
@pytest.mark.parametrize("kind", ["linear", "convolutions"])
@pytest.mark.parametrize("scale", [1, 0.6, -0.75, 0])
def test_each_kind_is_the_same_in_peft_at_its_scale(init, kind, scale, tmp_path, peft):
    x, plain = made(kind)[1], base(kind)
    ours = randomize(add_lora(base(kind), rank=2, alpha=3.0, init=init, use_rslora=True))
    set_lora_scale(ours, scale)
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(base(kind), str(tmp_path / "ours")).eval()
    close = {"rtol": 1e-6, "atol": 1e-6 * float(ours(x).detach().abs().max())}
    torch.testing.assert_close(theirs(x), ours(x), **close)
    assert torch.equal(ours(x), plain(x)) == (scale == 0)
    if scale < 0:  # a negative alpha is PEFT's alone
        return
    theirs.save_pretrained(str(tmp_path / "theirs"))
    loaded = load_adapter(base(kind), tmp_path / "theirs")
    torch.testing.assert_close(loaded(x), ours(x), **close)


@pytest.mark.parametrize("init", KINDS)
@pytest.mark.parametrize("target_modules", ["all", "linear1"])
@pytest.mark.parametrize("scale", [1, -0.75, 0])
def test_an_offset_beside_each_kind_is_one_in_peft(init, target_modules, scale, tmp_path, peft):
    """Switched on and off, and merged; the factors as trained stay in the file at scale 0."""
    x, plain = made("linear")[1], base("linear")
    options = {"target_modules": target_modules, "init": init}
    ours = randomize(add_lora(base("linear"), rank=2, alpha=3.0, **options))
    direction = torch.linspace(-1, 2, ours(x).shape[1])
    set_lora_scale(ours, scale)
    set_lora_offset(add_offset(ours, "linear2", Offset(direction)), 1.5)
    save_adapter(ours, tmp_path)
    close = {"rtol": 1e-5, "atol": 1e-6}
    if scale == 0:
        torch.testing.assert_close(ours(x), plain(x) + 1.5 * direction, **close)
    theirs = peft.PeftModel.from_pretrained(base("linear"), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(x), ours(x), **close)
    with theirs.disable_adapter(), lora_disabled(ours):
        assert torch.equal(ours(x), plain(x))
        if init != "dora":  # there the bias of the base has it
            torch.testing.assert_close(theirs(x), plain(x), **close)
    torch.testing.assert_close(theirs.merge_and_unload()(x), ours(x), **close)
    loaded = load_adapter(base("linear"), tmp_path)
    torch.testing.assert_close(loaded(x), ours(x), **close)
    merged = merge_lora(copy.deepcopy(loaded))
    torch.testing.assert_close(merged(x), ours(x), **close)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert changed_tensors(plain.state_dict(), base_state_dict(unmerge_lora(merged))) == []
    for net in (ours, loaded):
        set_lora_scale(net, 1)
    torch.testing.assert_close(loaded(x), ours(x), **close)
    set_lora_offset(loaded, 0)
    torch.testing.assert_close(loaded(x), ours(x) - 1.5 * direction, **close)
    assert torch.equal(remove_lora(loaded)(x), plain(x))


def test_a_bias_of_the_base_is_that_with_the_offset(tmp_path):
    ours = add_lora(base("linear"), init="dora")
    set_lora_offset(add_offset(ours, "linear2", Offset(torch.tensor([0.0, 1, 0]))), 1.5)
    save_adapter(ours, tmp_path)
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        tensors, metadata = load_file(tmp_path / WEIGHTS_NAME), file.metadata()
    (key,) = [key for key in tensors if key.endswith(".bias")]
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / WEIGHTS_NAME, metadata)
    with pytest.raises(ValueError, match="linear2.*bias is not what the metadata ask for"):
        load_adapter(base("linear"), tmp_path)


def test_biases_that_are_no_offset_are_refused(tmp_path, peft):
    options = peft.LoraConfig(target_modules="linear.", lora_bias=True)
    theirs = peft.get_peft_model(base("linear"), options)
    randomize(theirs).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="linear..lora_B.bias belongs to no layer"):
        load_adapter(base("linear"), tmp_path)


def test_adapters_that_are_scaled_otherwise_are_saved_as_one(tmp_path):
    """And of the files that they came from, what both say is known."""
    net, x = made("linear")
    for layer, use_rslora in (("linear1", True), ("linear2", False)):
        own = randomize(add_lora(base("linear"), 4, target_modules=layer, use_rslora=use_rslora))
        load_adapter(net, save_adapter(own, tmp_path / layer, {"a": layer, "b": [1]}))
    save_adapter(net, tmp_path / "both")
    torch.testing.assert_close(load_adapter(base("linear"), tmp_path / "both")(x), net(x))
    assert read_metadata(tmp_path / "both").keys() & {"a", "b"} == {"b"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"target_modules": "linear.", "alpha_pattern": {"^linear2": 1, "linear1": 20}}),
        ("linear", {"target_modules": "linear.", "r": 4, "lora_alpha": 5, "use_rslora": True}),
        ("convolutions", {"target_modules": ["conv"], "alpha_pattern": {"block.conv": 3}}),
        ("conv1d", {"target_modules": "0", "r": 2}),
        ("linear", {"target_modules": "linear.", "exclude_modules": ["linear2"]}),
        ("linear", {"target_modules": ["linear1", "of_another_network"]}),
        ("linear", {"target_modules": "linear.", "use_dora": True, "rank_pattern": {"linear1": 3}}),
        ("convolutions", {"target_modules": ["conv"], "use_dora": True, "use_rslora": True}),
    ],
)
def test_adapters_of_peft_load_here(kind, options, tmp_path, peft):
    x = made(kind)[1]
    theirs = randomize(peft.get_peft_model(base(kind), peft.LoraConfig(**options)))
    theirs.save_pretrained(str(tmp_path))
    ours = load_adapter(base(kind), tmp_path)
    assert not torch.allclose(ours(x), base(kind)(x), atol=1e-2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 1, dilation=2), nn.Conv2d(4, 4, 1, groups=4), nn.GRU(6, 5)],
    ids=str,
)
def test_what_peft_cannot_adapt_is_named(layer, tmp_path):
    net = nn.Sequential(layer)
    add_lora(net, target_modules=".*")
    with pytest.warns(UserWarning, match="PEFT has no such adapter for 0"):
        save_adapter(net, tmp_path)


@pytest.mark.parametrize(
    ("kind", "init", "options"),
    [
        ("linear", "pissa", {"init_lora_weights": "pissa"}),
        ("linear", "dora", {"use_dora": True}),
        ("convolutions", "dora", {"use_dora": True}),
    ],
)
def test_kinds_train_as_in_peft(kind, init, options, peft):
    """The same steps from the same start, though PiSSA's base is here never the residual."""
    x, plain = made(kind)[1], base(kind)
    ours = add_lora(base(kind), rank=2, alpha=3.0, init=init)
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=".*(conv|linear|0).*", **options)
    theirs = peft.get_peft_model(base(kind), settings)
    if init == "dora":  # lora_A is random
        for name, adapter in adapted_weights(ours).items():
            layer = theirs.get_submodule(f"base_model.model.{name}")
            layer.lora_A.default.weight.data.copy_(adapter.adapters[0].lora_A)
    for net in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
        for _ in range(9):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert not torch.allclose(ours(x), plain(x), atol=1e-3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
