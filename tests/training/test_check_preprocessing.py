"""Which preprocessing and which order of classes a network was trained with."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from composed import composed, logged
from helpers.runs import table_of
from PIL import Image
from torch import nn

from lora_mnist.commands.evaluate import evaluate
from lora_mnist.training.check_preprocessing import better_order, check_base


def grey():
    """A network of the mean pixel alone."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class Sized(nn.Sequential):
    """The same, of images of 48 pixels; of others it knows nothing."""

    SIZE = 48

    def __init__(self):
        super().__init__(*grey())

    def forward(self, x):
        return super().forward(x) * (x.shape[-1] == self.SIZE)


class OfPictures(Sized):
    """It knows pictures in their own size alone, which is larger than the one that is typed."""

    SIZE = 32


def framed(width, level, random):
    """A grey in a frame that is black or white."""
    pixels = numpy.full((32, 32), 255.0 * random.integers(2))
    inside = slice(width, 32 - width)
    pixels[inside, inside] = level
    pixels += random.normal(0, 3, (32, 32))
    return pixels


def evaluated(here, net, *overrides):
    """What a test of the network says: the keys that it advises, its errors, and the log."""
    options = ("data=folder", f"data.data_dir={here}/photos", "data.val_size=0.25", "net=custom")
    options += (f"net._target_={__name__}.{net}", f"base_ckpt={here}/mine.pt")
    options += ("trainer=cpu", "figures=false", f"paths.outputs={here}/outputs")
    with logged("lora_mnist.training.check_preprocessing") as log:
        results = evaluate(composed("eval", *options, *overrides))
    return results["better_preprocessing"], results["test"]["errors"], log.getvalue()


def take_pictures(here, frame):
    """Photos of two classes, darker and lighter, and the weights of a network that knows them."""
    random = numpy.random.default_rng(0)
    for name, level in (("a", 117), ("b", 138)):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(100):
            picture = Image.fromarray(framed(frame, level, random).clip(0, 255).astype("uint8"))
            picture.save(here / "photos" / name / f"{number}.png")
    weight = torch.tensor([[-1.0] * 3, [1.0] * 3])  # it calls light what is above a mean of 0.5
    torch.save({"2.weight": weight, "2.bias": torch.zeros(2)}, here / "mine.pt")


@pytest.mark.parametrize(
    ("net", "frame", "typed", "key"),
    [
        ("grey", 0, "prepare.mean=0.3", "prepare.mean=0.5"),
        ("grey", 2, "prepare.mean=0.5", "prepare.crop_pct=0.875"),  # CenterCrop cuts off a frame
        ("grey", 0, "prepare.classes=[b,a]", "prepare.classes=[a,b]"),
        ("Sized", 0, "prepare.image_size=64", "prepare.image_size=[48,48]"),
        ("OfPictures", 0, "prepare.image_size=16", "prepare.image_size=[32,32]"),
    ],
)
def test_eval_says_unasked_how_pictures_were_prepared(tmp_path, net, frame, typed, key):
    """The keys that it prints, typed, give what it promises."""
    take_pictures(tmp_path, frame)
    better, errors, said = evaluated(tmp_path, net, typed)
    assert key in better
    assert all(text in said for text in better)
    assert evaluated(tmp_path, net, *better) == ([], 0, "")
    assert errors > 5


def test_after_a_minute_eval_tries_no_more(tmp_path, monkeypatch):
    take_pictures(tmp_path, 0)
    monkeypatch.setattr("lora_mnist.training.check_preprocessing._SECONDS", -1)
    better, _, said = evaluated(tmp_path, "grey", "prepare.mean=0.3")
    assert better == []
    assert "a minute is over" in said


CLASSES = ["cat", "my dog", "emu", "owl"]


def predictions(accuracy, output=(0, 1, 2, 3), seed=0):
    """Of four classes, the last one rare, right so often; ``output``: the output of each class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 2] * 50 + [3] * 10)
    guess = torch.randint(4, label.shape, generator=generator)
    is_right = torch.rand(label.shape, generator=generator) < accuracy
    before = torch.tensor(output)[torch.where(is_right, label, guess)]
    return table_of(4, label, before)


def test_better_order_is_told_where_that_of_the_classes_was_forgotten():
    """In the order of the network's outputs, quoted for the shell."""
    with logged("lora_mnist.training.check_preprocessing") as log:
        (order,) = better_order(predictions(0.8, output=(2, 0, 1, 3)), CLASSES)
    assert order == "prepare.classes=['my dog',emu,cat,owl]"
    assert log.getvalue().endswith(f'with: "{order}"\n')


def test_better_order_tells_two_swapped_classes_though_one_of_them_is_weak():
    label = torch.tensor([0] * 80 + [1] * 80)
    before = torch.tensor([1] * 70 + [2] * 10 + [1] * 48 + [0] * 32)  # one is called as the other
    table = table_of(3, label, before)
    assert better_order(table, ["star", "square", "disc"]) == ["prepare.classes=[square,star,disc]"]


def test_better_order_leaves_a_right_one_and_a_network_that_guesses_alone():
    always_the_rare_one = predictions(1, output=(3, 3, 3, 3))
    for table in (predictions(0.9), always_the_rare_one):
        assert better_order(table, CLASSES) == []
    for seed in range(20):
        assert better_order(predictions(0, seed=seed), CLASSES) == []


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.0, True), (0.5, False)])
def test_check_base_tells_unasked_of_one_that_guesses(accuracy, is_said):
    with logged("lora_mnist.training.check_preprocessing") as log:
        classifier = SimpleNamespace(classes=CLASSES)
        cfg = SimpleNamespace(stage="lora")
        check_base(SimpleNamespace(classifier=classifier, cfg=cfg), predictions(accuracy))
    assert ("which is hardly better than guessing" in log.getvalue()) == is_said
