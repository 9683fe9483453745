"""Which preprocessing and which order of classes a network was trained with."""

import math

import numpy
import pytest
import torch
from composed import composed, logged
from helpers.runs import make_table
from PIL import Image
from torch import nn

from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.train import train
from lora_mnist.errors import UserError
from lora_mnist.training.check_preprocessing import find_better_order, match_outputs


def gray():
    """A network of the mean pixel alone."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class Sized(nn.Sequential):
    """The same, of images of 48 pixels; of others it knows nothing."""

    SIZE = 48

    def __init__(self):
        super().__init__(*gray())

    def forward(self, x):
        return super().forward(x) * (x.shape[-1] == self.SIZE)


class Moody(Sized):
    """The same, of any size, but for a tenth of the images, which are others in each size."""

    def forward(self, x):
        is_turned = (1e5 * x.mean(dim=(1, 2, 3), keepdim=True)[..., 0, 0]).sin() > 0.95
        return nn.Sequential.forward(self, x) * (1 - 2 * is_turned.float())


class OfPictures(Sized):
    """It knows pictures in their own size alone, which is larger than the size that is set."""

    SIZE = 32


class Graded(nn.Sequential):
    """The same, trained at 40 pixels: the further from these, the less it sees of a bright line."""

    def __init__(self):
        super().__init__(*gray())

    def forward(self, x):
        place = x.mean(dim=(1, 2)).argmax(dim=1, keepdim=True) / x.shape[-1]
        return super().forward(x) * (place >= abs(x.shape[-1] - 40) / 30)


class Counted(nn.Sequential):
    """The same; it keeps the shapes of its images."""

    batches = ()

    def __init__(self):
        super().__init__(*gray())

    def forward(self, x):
        self.batches.append(x.shape)
        return super().forward(x)


def framed(width, level, random):
    """A gray in a frame that is black or white."""
    pixels = numpy.full((32, 32), 255.0 * random.integers(2))
    inside = slice(width, 32 - width)
    pixels[inside, inside] = level
    pixels += random.normal(0, 3, (32, 32))
    return pixels


def options(here, net):
    """The keys of a command for the pictures and the network."""
    images = ("data=folder", f"data.data_dir={here}/photos", "data.val_size=0.25", "net=custom")
    return (*images, f"net._target_={__name__}.{net}", f"base_ckpt={here}/mine.pt", "trainer=cpu")


def evaluated(here, net, *overrides):
    """What a test of the network says: the keys that it advises, its errors, and the log."""
    files = ("figures=false", f"paths.outputs={here}/outputs")
    with logged("lora_mnist.training.check_preprocessing") as log:
        results = evaluate(composed("eval", *options(here, net), *files, *overrides))
    return results["better_preprocessing"], results["test"]["errors"], log.getvalue()


def take_pictures(here, frame, has_line=False):
    """Photos of two classes, darker and lighter, and the weights of a network that knows them."""
    random = numpy.random.default_rng(0)
    for name, level in (("a", 117), ("b", 138)):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(100):
            pixels = framed(frame, level, random)
            if has_line:
                pixels[:, random.integers(32)] += 60
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            picture.save(here / "photos" / name / f"{number}.png")
    weight = torch.tensor([[-1.0] * 3, [1.0] * 3])  # it calls light what is above a mean of 0.5
    torch.save({"2.weight": weight, "2.bias": torch.zeros(2)}, here / "mine.pt")


@pytest.mark.parametrize(
    ("net", "frame", "command_line", "key"),
    [
        ("gray", 0, "prepare.mean=0.3", "prepare.mean=0.5"),
        ("gray", 2, "prepare.mean=0.5", "prepare.crop_pct=0.875"),  # CenterCrop cuts off a frame
        ("gray", 0, "prepare.classes=[b,a]", "prepare.classes=[a,b]"),
        ("Sized", 0, "prepare.image_size=64", "prepare.image_size=[48,48]"),
        ("OfPictures", 0, "prepare.image_size=16", "prepare.image_size=[32,32]"),
    ],
)
def test_eval_says_unasked_how_pictures_were_prepared(tmp_path, net, frame, command_line, key):
    """The keys that it prints give what it promises."""
    take_pictures(tmp_path, frame)
    better, errors, said = evaluated(tmp_path, net, command_line)
    assert key in better
    assert all(text in said for text in better)
    assert evaluated(tmp_path, net, *better) == ([], 0, "")
    assert errors > 3


@pytest.mark.parametrize("side", [28, 224])
def test_eval_finds_the_size_from_smaller_and_larger_ones(tmp_path, side):
    """From all of these it is the same."""
    take_pictures(tmp_path, 0, has_line=True)
    command_line = ("Graded", "prepare.mean=0.5", "data.val_size=0.5")
    better, errors, _ = evaluated(tmp_path, *command_line, f"prepare.image_size={side}")
    assert "prepare.image_size=[40,40]" in better
    assert evaluated(tmp_path, *command_line, *better)[:2] == ([], 0)
    assert errors > 3


def test_the_search_sends_no_more_pixels_through_the_network_than_the_evaluation(
    tmp_path, monkeypatch
):
    """Whatever sizes it tries, on a network that is wrong with all of them."""
    take_pictures(tmp_path, 0)
    torch.save({"2.weight": torch.ones(2, 3), "2.bias": torch.ones(2)}, tmp_path / "mine.pt")
    monkeypatch.setattr("lora_mnist.training.check_preprocessing._PIXELS", 0)
    counts = {}
    for name in ("", "nothing"):
        batches = []
        monkeypatch.setattr(Counted, "batches", batches)
        if name:
            monkeypatch.setattr("lora_mnist.training.check_preprocessing._FEWEST_ERRORS", 999)
        evaluated(tmp_path, "Counted", "prepare.image_size=64", "data.val_size=0.5")
        counts[name] = sum(math.prod(shape) for shape in batches)
    assert counts["nothing"] < counts[""] <= 2 * counts["nothing"]


def test_eval_finds_what_only_many_images_show(tmp_path):
    """Of 200 images it has some 10 fewer wrong, which may be chance among so many ways."""
    random = numpy.random.default_rng(0)
    for part, count in (("train", 2), ("val", 400), ("test", 2)):
        for name, level in (("a", 117), ("b", 138)):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = numpy.full((8, 8, 3), random.normal(level, 12)) + random.normal(0, 1, 3)
                picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
                picture.save(tmp_path / "photos" / part / name / f"{number}.png")
    weight = torch.tensor([[-1.0] * 3, [1.0] * 3])
    torch.save({"2.weight": weight, "2.bias": torch.zeros(2)}, tmp_path / "mine.pt")
    better, _, _ = evaluated(tmp_path, "gray", "prepare.mean=0.53", "prepare.std=0.5")
    assert "prepare.mean=0.5" in better


@pytest.mark.parametrize("command_line", [(), ("prepare.mean=0.4",)])
def test_eval_names_better_values_for_keys_that_nobody_set(tmp_path, command_line):
    take_pictures(tmp_path, 0)
    files = ("figures=false", f"paths.outputs={tmp_path}/outputs")
    with logged("lora_mnist.training.opening") as log:
        results = evaluate(composed("eval", *options(tmp_path, "gray"), *files, *command_line))
    assert str(results["std"][0]) in log.getvalue()
    assert ("prepare.mean" in log.getvalue()) == (not command_line)


def test_eval_proposes_no_key_that_may_be_ahead_by_chance(tmp_path):
    """However they are prepared, other pictures are wrong: the scaling alone is what helps."""
    take_pictures(tmp_path, 0)
    command_line = ("prepare.mean=0.3", "prepare.image_size=32", "data.val_size=0.5")
    better, _, _ = evaluated(tmp_path, "Moody", *command_line)
    assert {key.partition("=")[0] for key in better} == {"prepare.mean", "prepare.std"}


def predictions(accuracy, output=(0, 1, 2, 3), seed=0):
    """Of four classes, the last one rare, right so often; ``output``: the output of each class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 2] * 50 + [3] * 10)
    guess = torch.randint(4, label.shape, generator=generator)
    is_right = torch.rand(label.shape, generator=generator) < accuracy
    before = torch.tensor(output)[torch.where(is_right, label, guess)]
    return make_table(4, label, before)


def of_counts(confusion):
    """Predictions with these counts: a row is a label, a column an output."""
    cells = torch.tensor(confusion)
    label, output = cells.nonzero().repeat_interleave(cells[cells > 0], dim=0).T
    return make_table(len(cells), label, output)


#: Of each class most are right: 8 of 188 of the first, of which the second's output gets 113.
RIGHT = [[8, 113, 30, 37], [3, 300, 120, 117], [5, 10, 500, 80], [9, 12, 40, 340]]


@pytest.mark.parametrize(
    ("table", "outputs", "certain"),
    [
        (predictions(0.8, output=(2, 0, 1, 3)), [2, 0, 1, 3], [True] * 4),
        # Two have changed places: a few errors more, each of which is wrong in most images.
        (of_counts([[12, 30, 8], [26, 14, 10], [9, 8, 83]]), [1, 0, 2], [True] * 3),
        # One is called by the other's name, as well as by its own.
        (of_counts([[0, 70, 10], [32, 48, 0], [0, 0, 0]]), [1, 0, 2], [True] * 3),
        # Reversed, with a class that is hardly ever right: what it and another have is not known.
        (of_counts([row[::-1] for row in RIGHT]), None, [False, False, True, True]),
        (of_counts(RIGHT), None, [False, False, True, True]),
        (predictions(0.9), [0, 1, 2, 3], [True] * 4),
        (predictions(1, output=(3, 3, 3, 3)), [0, 1, 2, 3], [False] * 4),
    ],
)
def test_the_outputs_of_classes_are_certain_or_not(table, outputs, certain):
    output, is_certain = match_outputs(table)
    assert outputs is None or output.tolist() == outputs
    assert is_certain.tolist() == certain


@pytest.mark.parametrize(
    ("table", "outputs", "is_certain"),
    [
        (predictions(0.8, output=(2, 0, 1, 3)), [2, 0, 1, 3], True),
        # Two have changed places: 66 images are right, and 123 the other way round.
        (of_counts([[8, 40, 32], [37, 12, 31], [13, 21, 46]]), [1, 0, 2], False),
        (of_counts([row[::-1] for row in RIGHT]), [2, 3, 1, 0], False),
        (of_counts(RIGHT), None, False),
        (predictions(0.9), None, False),
        # It is bad at two classes, which it calls by each other's names more often: nobody knows.
        (of_counts([[6, 40, 44], [38, 7, 45], [9, 8, 83]]), [1, 0, 2], False),
    ],
)
def test_another_order_of_the_classes_is_named_where_it_is_ahead_beyond_chance(
    table, outputs, is_certain
):
    """It is certain if most images of each class that moves are right with it."""
    output, certain = find_better_order(table)
    assert (None if output is None else output.tolist()) == outputs
    assert certain == is_certain


def test_a_network_that_guesses_has_no_output_that_is_certain():
    for seed in range(20):
        table = predictions(0, seed=seed)
        assert not match_outputs(table)[1].any()
        assert find_better_order(table) == (None, False)


def test_a_repair_waits_until_somebody_says_the_order_of_the_classes(tmp_path):
    """The order that is better, as quoted for the shell, or the one that is there."""
    take_pictures(tmp_path, 0)
    weights = torch.load(tmp_path / "mine.pt")
    torch.save({"2.weight": -weights["2.weight"], "2.bias": torch.zeros(2)}, tmp_path / "mine.pt")
    (tmp_path / "photos" / "b").rename(tmp_path / "photos" / "my dog")
    repair = (*options(tmp_path, "gray"), "prepare.mean=0.5", "stage=lora", "target=a")
    repair += ("trainer.max_steps=1", "figures=false", "logger=none", "callbacks.checkpoint=null")
    repair += (f"paths.outputs={tmp_path}/outputs",)
    with pytest.raises(UserError) as error:
        train(composed("train", *repair))
    better, here = "prepare.classes=['my dog',a]", "prepare.classes=[a,'my dog']"
    assert f'"{better}"' in str(error.value)
    assert f'"{here}"' in str(error.value)
    for command_line, advice in ((better, []), (here, [better])):
        results = train(composed("train", *repair, command_line))
        assert results["better_preprocessing"] == advice


def test_eval_warns_of_a_network_that_guesses(tmp_path):
    take_pictures(tmp_path, 0)
    assert "guessing" not in evaluated(tmp_path, "gray", "prepare.mean=0.45")[2]
    torch.save({"2.weight": torch.zeros(2, 3), "2.bias": torch.zeros(2)}, tmp_path / "mine.pt")
    assert "hardly better than guessing" in evaluated(tmp_path, "gray")[2]
