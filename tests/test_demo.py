import os
import shutil
import socket
import sys

import pytest
import torch
from composed import FEW, SMALL, composed, logged, small_adapter, small_base, small_net
from helpers.stranger import CLASSES, move_in
from helpers.stranger import config as stranger_config
from PIL import Image

from lora_mnist import save_adapter, set_lora_scale
from lora_mnist.command import Run
from lora_mnist.demo import SideBySide, build_page, demo
from lora_mnist.errors import UserError

OLD, NEW = "lora/2026-01-01", "multirun/sweep/0"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    small_base(outputs)
    for seed, run in enumerate((OLD, NEW)):
        file = small_adapter(outputs, run, seed, std=0.2) / "adapter_config.json"
        os.utime(file, (seed + 1, seed + 1))
    return outputs


def config(outputs, *overrides):
    return composed("demo", SMALL[0], *FEW, f"paths.outputs={outputs}", *overrides)


@pytest.fixture
def sides(outputs):
    return SideBySide(config(outputs))


@torch.no_grad()
def expected(sides, net, number):
    batch = sides.classifier.dataset.normalise(sides.test_set.take([number])[0])
    return net(batch).softmax(1)[0].tolist()


@pytest.mark.parametrize("scale", [1.0, 0.35])
def test_asks_the_base_and_the_adapted_network(outputs, scale):
    sides = SideBySide(config(outputs, f"adapter={outputs}/{NEW}"))
    base, adapted = sides.ask(sides.test_set.pixels[3], scale)
    assert list(base) == list(adapted) == [*"0123456789"]
    assert list(base.values()) == expected(sides, small_net(outputs), 3)
    net = small_net(outputs, outputs / NEW / "adapter")
    set_lora_scale(net, scale)
    assert list(adapted.values()) == pytest.approx(expected(sides, net, 3), abs=1e-6)
    assert base != adapted
    assert sides.ask(sides.test_set.pixels[3], 0.0) == [base, base]  # bit for bit


def test_opens_with_what_is_given_or_else_the_latest_at_the_scale_it_was_saved_with(
    sides, outputs, tmp_path
):
    assert sides.classifier.adapter == outputs / OLD / "adapter"  # a sweep's job is not the latest
    assert sides.scale == 1
    net = small_net(outputs, outputs / NEW / "adapter")
    set_lora_scale(net, 0.4)
    given = SideBySide(config(outputs, f"adapter={save_adapter(net, tmp_path)}"))
    assert (given.classifier.adapter, given.scale) == (tmp_path, 0.4)


def test_of_a_base_that_is_named_the_newest_adapter_that_is_whole(outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / "outputs")
    typed = Run(tmp_path, (SMALL[0],))
    assert SideBySide(config(tmp_path / "outputs"), typed).classifier.adapter.parts[-2:] == (
        *("0", "adapter"),
    )
    damaged = tmp_path / "outputs" / NEW / "adapter"
    (damaged / "adapter_model.safetensors").write_bytes(b"short")
    with logged("lora_mnist.demo") as text:
        sides = SideBySide(config(tmp_path / "outputs"), typed)
    assert sides.classifier.adapter == tmp_path / "outputs" / OLD / "adapter"
    assert f"left out: {damaged}: " in text.getvalue()


@pytest.mark.slow
def test_an_empty_drawing_and_a_port_that_is_taken(sides, outputs, tmp_path):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    Image.new("RGBA", (280, 280)).save(tmp_path / "empty.png")
    page = build_page(sides)
    assert page.analytics_enabled is False
    read, _, ask = (page.fns[number].fn for number in range(3))
    drawing = {"background": None, "layers": [], "composite": f"{tmp_path}/empty.png"}
    assert read(drawing) == (None, "This picture cannot be used: nothing on it.")
    assert ask(None, 1.0) == (None, None, None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^server\.port={port}: expected "):
            demo(config(outputs, f"server.port={port}"))


@pytest.mark.slow
def test_photographs_are_uploaded(tmp_path, monkeypatch):
    """There is no pad to draw them on; a test image is called by the name of its class."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    move_in(tmp_path, monkeypatch)
    small_base(tmp_path / "outputs")
    small_adapter(tmp_path / "outputs", "lora/other")
    sides = SideBySide(stranger_config("demo"), Run(tmp_path, ("data=folder",)))
    assert sides.classifier.adapter is None  # the latest adapter is another base's
    page = build_page(sides)
    assert "Sketchpad" not in [type(block).__name__ for block in page.blocks.values()]
    read, mistake = (page.fns[number].fn for number in (0, 1))
    image, note = read("photos/dog/3.png")
    assert (image.shape, note) == ((3, 8, 8), "")
    assert mistake()[0].rpartition("labelled ")[2] in CLASSES


def test_without_the_extra(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = cli("demo.py")
    assert (done.code, done.err.partition(" ")[0]) == (2, "demo.py:")
    assert done.err.endswith('pip install "lora-mnist[demo]"\n')
