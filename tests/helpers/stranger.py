"""A network, weights and a folder of images that know nothing of this project."""

import sys

import numpy
import torch
from composed import composed
from PIL import Image

from lora_mnist.classifier.build import build_network
from lora_mnist.config.make import read_settings

CLASSES = ["cat", "dog", "emu"]
_MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        if images.shape[-1] > 16:
            raise ValueError("expected small images")  # so larger ones are not tried for long
        return self.head(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))
"""
PHOTOS = ("data=folder", "data.data_dir=photos", "net=custom")
OPTIONS = (*PHOTOS, "base_ckpt=mine.pt", "net._target_=nets_of_a_stranger.Net")


def take_pictures(folder, counts=None, size=(8, 8), seed=0):
    """Noise in three colors: so many pictures in a folder for each class."""
    generator = numpy.random.default_rng(seed)
    width, height = size
    for label, (name, count) in enumerate((counts or dict.fromkeys(CLASSES, 20)).items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 120, (height, width, 3), dtype=numpy.uint8)
            pixels[:, :, label % 3] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def move_in(folder, monkeypatch):
    """Make ``folder`` the place where the stranger stands, with photos of three colors."""
    take_pictures(folder / "photos")
    (folder / "nets_of_a_stranger.py").write_text(_MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "nets_of_a_stranger", raising=False)  # another test's
    torch.manual_seed(0)
    net = fresh()
    net(torch.randn(50, 3, 8, 8))  # statistics that are not those of a fresh network
    torch.save(net.state_dict(), "mine.pt")
    return folder


def fresh():
    """The stranger's network with random weights."""
    return build_network(read_settings(config("eval"))["net"])


def mine():
    """The stranger's network with the stranger's weights, in eval mode."""
    net = fresh()
    net.load_state_dict(torch.load("mine.pt", weights_only=True))
    return net.eval()


def config(entry, *overrides):
    """The configuration of ``python <entry>.py`` with the stranger's options and more."""
    return composed(entry, *OPTIONS, "paths.outputs=outputs", *overrides)
