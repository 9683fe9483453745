"""Which preprocessing and which order of classes a network was trained with."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from composed import composed, logged
from helpers.commands import only_run, read_results
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lora_mnist import MLP, Classifier
from lora_mnist.check_preprocessing import better_order, better_preparation, warn_of_guessing
from lora_mnist.command import Run
from lora_mnist.data import Folder
from lora_mnist.evaluate import evaluate
from lora_mnist.repair.predictions import Predictions


def train_plain(folder):
    """Somebody's own script, which stretches pictures and divides them by 255.

    The pictures are wide, with noise and a coloured bar in one of three places, 150 a class.
    """
    generator = numpy.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "emu")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(150):
            pixels = generator.normal(90, 80, (12, 20, 3))
            left = 3 * label  # of a cat, cropping leaves nothing
            pixels[:, left : left + 4] += generator.normal([70, 20, 0], 25)
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            picture.save(folder / "photos" / name / f"{number}.png")
    (folder / "nets_of_photos.py").write_text("from lora_mnist import MLP")
    steps = [v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    pictures = ImageFolder(str(folder / "photos"), v2.Compose(steps))
    images = torch.stack([image for image, _ in pictures])
    labels = torch.tensor(pictures.targets)
    torch.manual_seed(0)
    net = MLP(3 * 8 * 8, [32], 3)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(images)).split(30):
            adam.zero_grad()
            cross_entropy(net(images[batch]), labels[batch]).backward()
            adam.step()
    torch.save(net.state_dict(), folder / "mine.pt")


OPTIONS = (
    *("data=folder", "data.data_dir=photos", "prepare.image_size=8", "figures=false"),
    "trainer=cpu",
    *("net=custom", "net._target_=nets_of_photos.MLP", "base_ckpt=mine.pt"),
    *("net.in_features=192", "net.hidden_sizes=[32]", "net.num_classes=3"),
)


@pytest.mark.slow
def test_eval_says_unasked_how_the_network_was_trained(cli, tmp_path):
    train_plain(tmp_path)
    done = cli("eval.py", *OPTIONS, here=tmp_path).ok()
    assert "tried, with: prepare.resize=stretch " in done.err
    assert "To repair" not in done.out  # on other images than the network was trained on
    results = read_results(only_run(tmp_path / "outputs", "eval"))
    better = results["better_preprocessing"]
    keys = ["prepare.resize", "prepare.mean", "prepare.std"]
    assert [text.partition("=")[0] for text in better] == keys
    options = (*OPTIONS, *better, f"paths.outputs={tmp_path}/outputs")
    with logged("lora_mnist.check_preprocessing") as log:
        mended = evaluate(composed("eval", *options))
    assert log.getvalue() == ""
    assert mended["test"]["errors"] < results["test"]["errors"]
    moved = evaluate(composed("eval", *options, "prepare.classes=[emu,cat,dog]"))
    assert moved["better_preprocessing"] == ["prepare.classes=[cat,dog,emu]"]


def stripes(folder):
    """A network that knows pictures of stripes at 64 pixels, and takes any size.

    The classes are told apart by the width of the stripes.
    """
    generator = numpy.random.default_rng(0)
    for name, width in (("fine", 4), ("coarse", 7)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(60):
            wave = numpy.sin(2 * numpy.pi * (numpy.arange(32) / width + generator.random()))
            pixels = 128 + 60 * wave + generator.normal(0, 20, (32, 32))
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            picture.save(folder / "photos" / name / f"{number}.png")
    data = Folder(folder / "photos", channels=1, image_size=64, mean=0.5, std=0.25)
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 9, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(8, 2))
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    ((images, labels),) = data.batches(data.sets.train)
    for _ in range(60):
        adam.zero_grad()
        cross_entropy(net(images), labels).backward()
        adam.step()
    torch.save(net.state_dict(), folder / "mine.pt")
    return net


def test_a_network_that_takes_any_size_is_tried_at_others(tmp_path):
    classifier = Classifier.load(
        net=stripes(tmp_path),
        base=tmp_path / "mine.pt",
        prepare={"image_size": 192, "channels": 1, "mean": 0.4, "std": 0.3},
        data={"_target_": "lora_mnist.data.Folder", "data_dir": str(tmp_path / "photos")},
    )
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cpu"))
    session = SimpleNamespace(classifier=classifier, run=Run(tmp_path), trainer=trainer)
    assert better_preparation(session)[0] == "prepare.image_size=[64,64]"


def table_of(label, before):
    nothing = torch.zeros(len(label))
    return Predictions(4, torch.arange(len(label)), label, before, nothing, nothing)


def predictions(accuracy, seed=0):
    """Labels of four classes, the last one rare, and predictions that are right so often."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 2] * 50 + [3] * 10)
    guess = torch.randint(4, label.shape, generator=generator)
    is_right = torch.rand(label.shape, generator=generator) < accuracy
    return label, torch.where(is_right, label, guess)


CLASSES = ["cat", "my dog", "emu", "owl"]


def test_a_forgotten_order_of_the_classes_is_told():
    """In the order of the network's outputs, quoted for the shell."""
    label, before = predictions(0.8)
    output = torch.tensor([2, 0, 1, 3])  # of each class
    with logged("lora_mnist.check_preprocessing") as log:
        (order,) = better_order(table_of(label, output[before]), CLASSES)
    assert order == "prepare.classes=['my dog',emu,cat,owl]"
    assert log.getvalue().endswith(f'with: "{order}"\n')


@pytest.mark.parametrize(
    ("label", "before"),
    [
        predictions(0.9),
        *(predictions(0.0, seed) for seed in range(20)),
        (predictions(1)[0], torch.zeros(160, dtype=torch.int64)),
        (predictions(1)[0], torch.full((160,), 3)),  # always the rare one
    ],
)
def test_a_right_order_and_a_network_that_guesses_are_left_alone(label, before):
    assert better_order(table_of(label, before), CLASSES) == []


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.0, True), (0.5, False)])
def test_a_base_that_guesses_is_told_unasked(accuracy, is_said):
    with logged("lora_mnist.check_preprocessing") as log:
        warn_of_guessing(table_of(*predictions(accuracy)))
    assert ("which is hardly better than guessing" in log.getvalue()) == is_said
