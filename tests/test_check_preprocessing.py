"""Which preprocessing and which order of classes a network was trained with."""

from functools import partial

import numpy
import pytest
import torch
from composed import composed, logged
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from lora_mnist.check_preprocessing import better_order, warn_of_guessing
from lora_mnist.command import classifier_of
from lora_mnist.data import Folder
from lora_mnist.evaluate import evaluate
from lora_mnist.repair.predictions import Predictions
from lora_mnist.repair.predictions import evaluate as predictions_of


def striped():
    """A network of images from 36 pixels; as timm's do, it says at which size it was trained."""
    layers = (nn.Conv2d(3, 8, 9, stride=2), nn.ReLU(), nn.MaxPool2d(14, stride=1))
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    net.pretrained_cfg = {"input_size": (3, 128, 128), "crop_pct": 0.9}
    return net


def grey():
    """A network of the mean pixel alone."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def save_grey(here):
    """Its weights, by which it calls a picture light above a mean of 0.5."""
    weight = torch.tensor([[-1.0] * 3, [1.0] * 3])
    torch.save({"2.weight": weight, "2.bias": torch.zeros(2)}, here / "mine.pt")


def stripes(width, random):
    """Stripes, a few pixels wide."""
    wave = numpy.sin(2 * numpy.pi * (numpy.arange(32) / width + random.random()))
    return 128 + 60 * wave + random.normal(0, 20, (32, 32))


def framed(width, level, random):
    """A grey in a frame that is black or white."""
    pixels = numpy.full((32, 32), 255.0 * random.integers(2))
    inside = slice(width, 32 - width)
    pixels[inside, inside] = level
    pixels += random.normal(0, 3, (32, 32))
    return pixels


def take_pictures(folder, draw, *values):
    """A folder of photos whose two classes have different values."""
    random = numpy.random.default_rng(0)
    for name, value in zip(("a", "b"), values, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(100):
            picture = Image.fromarray(draw(value, random).clip(0, 255).astype("uint8"))
            picture.save(folder / name / f"{number}.png")


def train_on_stripes(here):
    """Photos of stripes, and the weights of a network that knows them at 64 pixels."""
    take_pictures(here / "photos", stripes, 7, 4)
    data = Folder(here / "photos", image_size=64, mean=0.5, std=0.25)
    torch.manual_seed(0)
    net = striped()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    ((images, labels),) = data.batches(data.sets.train)
    for _ in range(60):
        adam.zero_grad()
        cross_entropy(net(images), labels).backward()
        adam.step()
    torch.save(net.state_dict(), here / "mine.pt")


def evaluated(here, net, *overrides):
    """What a test of the network says: the keys that it advises, and its errors."""
    options = ("data=folder", f"data.data_dir={here}/photos", "data.val_size=0.25", "net=custom")
    options += (f"net._target_={__name__}.{net}", f"base_ckpt={here}/mine.pt")
    options += ("trainer=cpu", "figures=false", f"paths.outputs={here}/outputs")
    cfg = composed("eval", *options, *overrides)
    with logged("lora_mnist.check_preprocessing") as log:
        results = evaluate(cfg)
    return results["better_preprocessing"], results["test"]["errors"], log.getvalue(), cfg


@pytest.mark.slow
def test_eval_says_unasked_at_which_size_a_network_was_trained(tmp_path):
    """Not at the network's own size, with ImageNet's mean; typed, its keys give what it printed."""
    pytest.importorskip("timm", reason="the extra all is not installed")
    train_on_stripes(tmp_path)
    better, errors, said, _ = evaluated(tmp_path, "striped")
    assert better[0].startswith("prepare.image_size=")
    mended, fewer, nothing, cfg = evaluated(tmp_path, "striped", *better)
    assert (mended, nothing) == ([], "")
    assert fewer < errors / 2
    classifier = classifier_of(cfg)
    data = classifier.dataset
    table = predictions_of(classifier.net, data.batches(data.sets.val))
    wrong = int((table.prediction[0] != table.label).sum())
    assert f"it makes {wrong} errors instead of " in said
    assert f" in {len(table)} validation images with: " in said
    order = evaluated(tmp_path, "striped", *better, "prepare.classes=[b,a]")[0]
    assert order == ["prepare.classes=[a,b]"]


@pytest.mark.parametrize(
    ("frame", "told", "key"), [(0, 0.3, "prepare.mean=0.5"), (2, 0.5, "prepare.crop_pct=0.875")]
)
def test_eval_says_unasked_how_pictures_were_prepared(tmp_path, frame, told, key):
    """Another mean; or CenterCrop, which cuts off a frame."""
    take_pictures(tmp_path / "photos", partial(framed, frame), 117, 138)
    save_grey(tmp_path)
    better, errors, *_ = evaluated(tmp_path, "grey", f"prepare.mean={told}")
    assert key in better
    assert evaluated(tmp_path, "grey", *better)[:2] == ([], 0)
    assert errors > 5


def test_after_a_minute_eval_tries_no_more(tmp_path, monkeypatch):
    take_pictures(tmp_path / "photos", partial(framed, 0), 117, 138)
    save_grey(tmp_path)
    monkeypatch.setattr("lora_mnist.check_preprocessing._SECONDS", -1)
    better, _, said, _ = evaluated(tmp_path, "grey", "prepare.mean=0.3")
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
