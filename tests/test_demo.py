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

from lora_mnist import save_adapter
from lora_mnist.demo import SideBySide, build_page, demo
from lora_mnist.errors import UserError
from lora_mnist.run import Run

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
    batch = sides.dataset.normalise(sides.test_set.take([number])[0])
    return net(batch).softmax(1)[0].tolist()


@pytest.mark.parametrize(("run", "scale"), [(None, 1.0), (NEW, 0.35)])
def test_asks_the_base_and_the_adapted_network(sides, outputs, run, scale):
    """The scale is a factor."""
    folders = [outputs / run / "adapter"] if run else []
    chosen = f"{outputs}/{run}/adapter" if run else None
    base, adapted = sides.ask(sides.test_set.pixels[3], chosen, scale)
    assert list(base) == list(adapted) == [*"0123456789"]
    assert list(base.values()) == expected(sides, small_net(outputs), 3)
    net = small_net(outputs, *folders)
    for name, parameter in net.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.mul_(scale)
    assert list(adapted.values()) == pytest.approx(expected(sides, net, 3), abs=1e-6)
    assert (base == adapted) == (run is None)
    assert sides.ask(sides.test_set.pixels[3], chosen, 0.0)[1] == base  # bit for bit


def test_the_menu(sides, outputs, tmp_path):
    """What is chosen, given or the latest, and then the newest first."""
    assert sides.chosen == f"{outputs}/{OLD}/adapter"  # a sweep's job is not the latest
    assert sides.menu == [(name, f"{outputs}/{name}/adapter") for name in (OLD, NEW)]
    elsewhere = tmp_path / "elsewhere"
    save_adapter(small_net(outputs, outputs / NEW / "adapter"), elsewhere)
    given = SideBySide(config(outputs, f"adapter={elsewhere}"))
    assert given.menu[0][1] == given.chosen == str(elsewhere)


def test_a_damaged_adapter_is_named_and_left_out(outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / "outputs")
    damaged = tmp_path / "outputs" / NEW / "adapter"
    (damaged / "adapter_model.safetensors").write_bytes(b"short")
    with logged("lora_mnist.demo") as text:
        sides = SideBySide(config(tmp_path / "outputs"))
    assert [name for name, _ in sides.menu] == [OLD]
    assert f"left out of the menu: {damaged}: " in text.getvalue()


@pytest.mark.slow
def test_an_empty_drawing_and_a_port_that_is_taken(sides, outputs, tmp_path):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    Image.new("RGBA", (280, 280)).save(tmp_path / "empty.png")
    page = build_page(sides)
    assert page.analytics_enabled is False
    read, _, ask = (page.fns[number].fn for number in range(3))
    drawing = {"background": None, "layers": [], "composite": f"{tmp_path}/empty.png"}
    assert read(drawing) == (None, "This picture cannot be used: nothing on it.")
    assert ask(None, sides.chosen, 1.0) == (None, None, None)
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
    assert sides.menu == []  # the latest adapter is another base's
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
