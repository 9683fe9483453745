"""What a stranger's mistakes are answered with: one line each, before anything is trained."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed, logged
from helpers.stranger import OPTIONS, config, fresh, mine, move_in
from torch import Tensor

from lora_mnist import add_lora, save_adapter
from lora_mnist.config import build_net
from lora_mnist.errors import UserError
from lora_mnist.evaluate import evaluate
from lora_mnist.load import load_base, with_latest_adapter
from lora_mnist.predict import predict
from lora_mnist.train import train


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return move_in(tmp_path, monkeypatch)


def refused(function: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_network_takes_its_arguments(here: Path, plus: str) -> None:
    cfg = config("eval", f"{plus}net.width=7")
    assert build_net(cfg).get_submodule("head").in_features == 7
    cfg = config("eval", "net._target_=torchvision.models.resnet18", f"{plus}net.num_classes=5")
    assert build_net(cfg).get_submodule("fc").out_features == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("net.widht=7",),
            "net: Net.__init__() got an unexpected keyword argument 'widht'; "
            "it takes (width=4, num_classes=3)",
        ),
        (
            ("net._target_=nets_of_a_stranger.Nett",),
            "net._target_=nets_of_a_stranger.Nett: not found; expected MODULE.CLASS, with MODULE "
            "in {here} or installed",
        ),
        (("net._target_=nowhere.Net",), "net._target_=nowhere.Net: not found; expected MODULE."),
        (
            ("net._target_=broken_nets.Net",),
            "net._target_=broken_nets.Net: problem in broken_nets - NameError: name 'nn' is not",
        ),
        (
            ("net._target_=nets_of_a_stranger",),
            "net: Expected a callable target, got '<module 'nets_of_a_stranger'",
        ),
    ],
)
def test_a_network_that_cannot_be_made(
    here: Path, overrides: tuple[str, ...], message: str
) -> None:
    (here / "broken_nets.py").write_text("class Net(nn.Module): pass")
    found = refused(build_net, config("eval", *overrides))
    assert found.startswith(message.replace("{here}", str(here)))


def test_a_custom_network_has_to_be_named() -> None:
    assert refused(build_net, composed("eval", "net=custom")) == (
        "net._target_: missing; expected a class, as net._target_=my_nets.Net"
    )


def test_who_forgets_that_it_is_a_custom_network_is_told() -> None:
    cfg = composed("eval", "net._target_=torchvision.models.resnet18")
    found = refused(build_net, cfg)
    assert re.match("net: ResNet.* unexpected keyword argument 'in_features'; it takes ", found)
    assert found.endswith("; expected net=custom, which adds no arguments of its own")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("net.num_classes=10", r"answers \(2, 10\) to images of shape \(2, 3, 8, 8\); expected \("),
        ("data.channels=1", r"cannot take images of shape \(2, 1, 8, 8\) from folder \(Given grou"),
    ],
)
def test_a_network_that_does_not_fit_the_images(here: Path, override: str, message: str) -> None:
    torch.save(fresh(num_classes=10 if "10" in override else 3).state_dict(), "mine.pt")
    assert re.match(f"net: {message}", refused(evaluate, config("eval", override)))
    repair = config("train", "experiment=repair", "digit=dog", "data.replay=9", override)
    assert re.match(f"net: {message}", refused(train, repair))
    assert not list(here.glob("outputs/lora/*/results.json"))
    pictures = config("predict", "images=photos/dog/1.png", override)
    assert refused(predict, pictures).startswith("net: ")


# --- the weights ---------------------------------------------------------------------------------

State = dict[str, Tensor]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {"model": {"head.weight": state["head.weight"], "fc": torch.ones(1)}},
            "missing: conv.weight, conv.bias, norm.weight and 5 more; unexpected: fc; expected the "
            "9 tensors such as conv.weight of the configured net",
        ),
        (
            lambda state: {**state, "head.weight": torch.ones(10, 4), "head.bias": torch.ones(10)},
            "of another shape: head.weight 10x4 instead of 3x4, head.bias 10 instead of 3; ",
        ),
        (
            lambda state: {**state, "head.bias": torch.full((3,), float("nan"))},
            "head.bias holds NaN or infinity; expected finite numbers",
        ),
        (
            lambda state: mine(),
            "damaged or something else (UnpicklingError); expected the weights of a network, as "
            "torch.save(net.state_dict(), ...) or safetensors writes them",
        ),
    ],
)
def test_weights_that_do_not_fit(here: Path, change: Any, message: str) -> None:
    torch.save(change(mine().state_dict()), "mine.pt")
    repair = config("train", "stage=lora", "digit=dog")
    for function, cfg in ((evaluate, config("eval")), (train, repair)):
        assert refused(function, cfg).startswith(f"base_ckpt=mine.pt: {message}")
    assert not list(here.glob("outputs/lora/*/results.json"))


def test_half_precision_is_converted_and_said_so(here: Path) -> None:
    everything = {name: tensor.half() for name, tensor in mine().state_dict().items()}
    torch.save(everything, "mine.pt")
    options = ("trainer.max_steps=2", "logger=none", "callbacks.checkpoint=null")
    with logged("lora_mnist.disk.base") as text:
        results = train(config("train", "stage=lora", "digit=dog", *options))
    assert results["base_unchanged"]
    assert text.getvalue().splitlines() == [
        "mine.pt: 8 of 9 tensors are torch.float16, and were converted to torch.float32",
        "mine.pt: 1 of 9 tensors are torch.float16, and were converted to torch.int64",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("base_ckpt=none.pt",),
            "base_ckpt=none.pt: no such file; expected the weights of nets_of_a_stranger.Net",
        ),
        (
            ("base_ckpt=null", "net.width=8"),
            "base_ckpt=outputs/base/folder_custom.ckpt: no such file; expected the weights of "
            "nets_of_a_stranger.Net as base_ckpt=FILE; or make some with: python train.py "
            "stage=pretrain net=custom net._target_=nets_of_a_stranger.Net net.width=8 "
            "data=folder data.data_dir=photos",
        ),
    ],
)
def test_weights_that_are_not_there(here: Path, overrides: tuple[str, ...], message: str) -> None:
    assert refused(evaluate, config("eval", *overrides)) == message


def test_an_adapter_of_ones_own_base_needs_that_base(here: Path) -> None:
    """Its base has no file of its own in outputs, where that of an adapter is looked for."""
    folder = here / "outputs" / "lora" / "2026-01-01" / "adapter"
    save_adapter(add_lora(mine()), folder)
    message = "is not in outputs/base; expected base_ckpt=FILE, the weights that it was trained on"
    for cfg in (config("eval", "adapter=latest", "base_ckpt=null"),):
        found = refused(evaluate, cfg)
        assert found.startswith("adapter=outputs/lora/2026-01-01/adapter: its base, ")
        assert message in found
    # Nor does another network's base, which happens to be the current one, answer for it.
    other = here / "outputs" / "base" / "folder_custom.ckpt"
    other.parent.mkdir()
    for net in (fresh(), fresh(width=9)):
        torch.save(net.state_dict(), other)
        assert message in refused(evaluate, config("eval", "adapter=latest", "base_ckpt=null"))
    allowed = config("eval", "adapter=latest", "base_ckpt=null", "allow_other_base=true")
    torch.save(fresh().state_dict(), other)
    load_base(with_latest_adapter(allowed), fresh())
    assert evaluate(config("eval", "adapter=latest"))["test_base"]["errors"] >= 0


# --- the images, from the command line -----------------------------------------------------------


def spoil(photos: Path, how: str) -> None:
    if how == "a broken image":
        (photos / "dog" / "1.png").write_bytes(b"no picture")
        (photos / "dog" / "2.png").write_bytes((photos / "dog" / "2.png").read_bytes()[:50])
    elif how == "an empty class":
        (photos / "yak").mkdir()
    elif how == "one class":
        for name in ("cat", "dog"):
            (photos / name).rename(photos.parent / name)
    elif how == "splits that differ":
        for part in ("train", "test"):
            (photos / part).mkdir()
        for name in ("cat", "dog", "emu"):
            (photos / name).rename(photos / "train" / name)
        for name in ("cat", "dog"):
            (photos / "test" / name).mkdir()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("an empty class", "no images in yak; expected files that end in .jpg"),
        ("one class", "expected a folder for each of two or more classes, found only emu"),
        ("splits that differ", "expected the classes of train/ in test/ too, which lacks emu"),
    ],
)
def test_folders_that_cannot_be_used(here: Path, cli: Any, how: str, message: str) -> None:
    spoil(here / "photos", how)
    paths = (f"data.data_dir={here}/photos", f"base_ckpt={here}/mine.pt")
    done = cli("eval.py", *OPTIONS, *paths)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"data.data_dir={here}/photos: {message}")


def test_broken_images_are_named_counted_and_left_out(here: Path, cli: Any) -> None:
    spoil(here / "photos", "a broken image")
    paths = (f"data.data_dir={here}/photos", f"base_ckpt={here}/mine.pt")
    done = cli("eval.py", *OPTIONS, *paths)
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    for line, number in zip(lines, (1, 2), strict=False):
        assert line.startswith(f"{here}/photos/dog/{number}.png: skipped: no readable picture (")
    assert lines[2] == "2 of 60 images skipped, which cannot be read"
