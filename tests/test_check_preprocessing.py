"""Which preprocessing and which order of classes a network was trained with."""

import numpy
import pytest
import torch
from composed import composed, logged
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from lora_mnist.check_preprocessing import better_order, warn_of_guessing
from lora_mnist.data import Folder
from lora_mnist.evaluate import evaluate
from lora_mnist.repair.predictions import Predictions


def striped():
    """A network that takes images of any size."""
    layers = (nn.Conv2d(1, 8, 9, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 2))


def train_on_stripes(folder):
    """Photos whose classes differ in the width of stripes; weights that know them at 64 pixels."""
    generator = numpy.random.default_rng(0)
    for name, width in (("fine", 4), ("coarse", 7)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(100):
            wave = numpy.sin(2 * numpy.pi * (numpy.arange(32) / width + generator.random()))
            pixels = 128 + 60 * wave + generator.normal(0, 20, (32, 32))
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            picture.save(folder / "photos" / name / f"{number}.png")
    data = Folder(folder / "photos", channels=1, image_size=64, mean=0.5, std=0.25)
    torch.manual_seed(0)
    net = striped()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    ((images, labels),) = data.batches(data.sets.train)
    for _ in range(60):
        adam.zero_grad()
        cross_entropy(net(images), labels).backward()
        adam.step()
    torch.save(net.state_dict(), folder / "mine.pt")


@pytest.mark.slow
def test_eval_says_unasked_how_a_network_was_trained(tmp_path):
    train_on_stripes(tmp_path)

    def tested(*overrides):
        options = ("data=folder", f"data.data_dir={tmp_path}/photos", "net=custom")
        options += (f"net._target_={__name__}.striped", f"base_ckpt={tmp_path}/mine.pt")
        options += ("trainer=cpu", "figures=false", f"paths.outputs={tmp_path}/outputs")
        return evaluate(composed("eval", *options, "prepare.channels=1", *overrides))

    wrong = ("prepare.image_size=192", "prepare.mean=0.4", "prepare.std=0.3")
    results = tested(*wrong)
    better = results["better_preprocessing"]
    assert better[0].startswith("prepare.image_size=")
    with logged("lora_mnist.check_preprocessing") as log:
        mended = tested(*wrong, *better)
    assert log.getvalue() == ""
    assert mended["test"]["errors"] < results["test"]["errors"]
    moved = tested(*wrong, *better, "prepare.classes=[fine,coarse]")
    assert moved["better_preprocessing"] == ["prepare.classes=[coarse,fine]"]


CLASSES = ["cat", "my dog", "emu", "owl"]


def predictions(accuracy, output=(0, 1, 2, 3), seed=0):
    """Of four classes, the last one rare, right so often; ``output``: the output of each class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 2] * 50 + [3] * 10)
    guess = torch.randint(4, label.shape, generator=generator)
    is_right = torch.rand(label.shape, generator=generator) < accuracy
    before = torch.tensor(output)[torch.where(is_right, label, guess)]
    nothing = torch.zeros(1, len(label))
    return Predictions(4, label, before[None], nothing, nothing)


def test_a_forgotten_order_of_the_classes_is_told():
    """In the order of the network's outputs, quoted for the shell."""
    with logged("lora_mnist.check_preprocessing") as log:
        (order,) = better_order(predictions(0.8, output=(2, 0, 1, 3)), CLASSES)
    assert order == "prepare.classes=['my dog',emu,cat,owl]"
    assert log.getvalue().endswith(f'with: "{order}"\n')


def test_a_right_order_and_a_network_that_guesses_are_left_alone():
    always_the_rare_one = predictions(1, output=(3, 3, 3, 3))
    for table in (predictions(0.9), always_the_rare_one):
        assert better_order(table, CLASSES) == []
    for seed in range(20):
        assert better_order(predictions(0, seed=seed), CLASSES) == []


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.0, True), (0.5, False)])
def test_a_base_that_guesses_is_told_unasked(accuracy, is_said):
    with logged("lora_mnist.check_preprocessing") as log:
        warn_of_guessing(predictions(accuracy))
    assert ("which is hardly better than guessing" in log.getvalue()) == is_said
