import sys

import pytest
import torch
from composed import FEW, SMALL, composed, small_net
from helpers.stranger import CLASSES, config, move_in
from PIL import Image

from lora_mnist import set_lora_scale
from lora_mnist.commands.demo import build_page, find_wrong_images, predict_both
from lora_mnist.config.make import load_from_config
from lora_mnist.lora.point import BASE, Point


@pytest.fixture
def cfg(with_nine):
    return composed("demo", SMALL[0], *FEW, f"paths.outputs={with_nine}")


@pytest.fixture
def classifier(cfg):
    return load_from_config(cfg)


@torch.no_grad()
def test_demo_asks_the_base_and_the_adapted_network(classifier, with_nine):
    image = classifier.test_images().sources[3]
    base, adapted = predict_both(classifier, image, Point(0.35))
    assert list(base) == list(adapted) == [*"0123456789"]
    x = classifier.dataset.normalize(image[None])
    assert list(base.values()) == small_net(with_nine)(x).softmax(1)[0].tolist()
    net = small_net(with_nine, with_nine / "lora" / "nine" / "adapter")
    set_lora_scale(net, 0.35)
    assert list(adapted.values()) == pytest.approx(net(x).softmax(1)[0].tolist(), abs=1e-6)
    assert base != adapted
    assert predict_both(classifier, image, BASE) == [base, base]  # bit for bit


@torch.no_grad()
def test_shows_every_image_that_the_base_gets_wrong(classifier, with_nine):
    images = classifier.test_images()
    predictions = small_net(with_nine)(
        classifier.dataset.normalize(torch.stack(images.sources))
    ).argmax(1)
    wrong = (predictions != images.labels).nonzero().flatten().tolist()
    shown = list(find_wrong_images(classifier, images))
    assert [number for _, _, number in shown] == wrong
    for note, image, number in shown:
        assert note == f"Test image {number}, labeled {images.labels[number]}"
        assert image.equal(images.sources[number])
    after_the_second = find_wrong_images(classifier, images, wrong[1])
    assert [number for _, _, number in after_the_second] == wrong[2:] + wrong[:2]  # again


@pytest.mark.nightly
def test_demo_of_an_empty_drawing(classifier, tmp_path):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    Image.new("RGBA", (280, 280)).save(tmp_path / "empty.png")
    page = build_page(classifier)
    assert page.analytics_enabled is False
    read, _, ask = (page.fns[number].fn for number in range(3))
    drawing = {"background": None, "layers": [], "composite": f"{tmp_path}/empty.png"}
    assert read(drawing)[0] is None
    assert ask(None, 1.0, 0.0) == (None, None, None)


@pytest.mark.nightly
def test_photographs_are_uploaded(tmp_path, monkeypatch):
    """There is no pad to draw them on; a test image is called by the name of its class."""
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    move_in(tmp_path, monkeypatch)
    page = build_page(load_from_config(config("demo", "adapter=null")))
    read, wrong_image = (page.fns[number].fn for number in (0, 1))
    assert read("photos/dog/3.png")[0].shape == (3, 8, 8)
    assert wrong_image(-1)[0].rpartition("labeled ")[2] in CLASSES


def test_demo_without_its_extra(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = cli("demo.py")
    assert (done.code, done.err.partition(" ")[0]) == (2, "demo.py:")
    assert done.err.endswith('pip install -e ".[demo]"\n')
