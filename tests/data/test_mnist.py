import io
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import ROOT
from PIL import Image
from torchvision import datasets

from lora_mnist.data import MNIST
from lora_mnist.data.digests import compute_digests
from lora_mnist.data.mnist import convert_to_digit
from lora_mnist.data.pictures import open_picture

RAW = ROOT / "data" / "MNIST" / "raw"
DIGITS = MNIST("MNIST", ROOT / "data").load(train=False)[0][:8, 0].float()


def test_images_are_those_of_torchvision():
    images = MNIST(data_dir=ROOT / "data").sets
    official = datasets.MNIST(ROOT / "data", train=True)
    assert torch.equal(images.train.take(range(99))[0][:, 0], official.data[:99])
    assert len(images.train) == 55_000
    assert torch.equal(images.val.labels, official.targets[55_000:])
    assert images.val.names[:2] == [55_000, 55_001]
    assert images.sha256["test"].startswith("a0863a96c44e5666")


def test_validation_images_may_be_held_out_of_the_test_images():
    images = MNIST(data_dir=ROOT / "data", val_from="test", val_size=4000).sets
    assert [len(images.train), len(images.val), len(images.test)] == [60_000, 4_000, 6_000]
    assert images.held_out == {"val": "test"}
    assert sorted([*images.val.names, *images.test.names]) == list(range(10_000))


def test_mnist_extracts_half_written_files_anew(tmp_path):
    """A fresh clone has four archives; somebody was killed while extracting them."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    contents = (struct.pack(">4I", 0x0803, 20, 28, 28) + b"short", b"", b"\0\0\x08", b"?")
    for archive, content in zip(sorted(RAW.glob("*.gz")), contents, strict=True):
        shutil.copy(archive, raw)
        (raw / archive.stem).write_bytes(content)
    with ThreadPoolExecutor() as pool:
        both = pool.map(MNIST("MNIST", tmp_path).load, [True, False])
        assert [len(labels) for _, labels in both] == [60_000, 10_000]


def test_mnist_names_files_that_are_not_there_where_no_download_is_possible(tmp_path):
    """Yet a picture is prepared without them; no folder is left."""
    dataset = MNIST(data_dir=tmp_path / "new")
    assert dataset.read_picture(ROOT / "docs" / "repaired.png").shape == (1, 28, 28)
    message = f"^data_dir={tmp_path}/new: expected the .gz files of http.* in .*/new/MNIST/raw; "
    with pytest.raises(ValueError, match=message):
        _ = dataset.sets
    assert not list(tmp_path.iterdir())


def enlarge(digit):
    large = F.interpolate(digit[None, None], (150, 150), mode="bicubic", align_corners=False)
    return large[0, 0].clamp(0, 255)


def make_picture(levels):
    return Image.fromarray(levels.round().byte().numpy())


def likeness(ours, original):
    """Correlation, give or take a pixel: a center of mass between two pixels may go to either."""
    moved = [ours.float().roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    rows = torch.stack([original, *moved]).flatten(1)
    return torch.corrcoef(rows)[0, 1:].max().item()


WAYS = {
    "faint": lambda digit: make_picture(200 + 0.1 * enlarge(digit)),
    "cut close": lambda digit: make_picture(255 - enlarge(digit)[12:138, 12:138]),
    "on nothing": lambda digit: Image.merge(
        "LA", [Image.new("L", (150, 150), 0), make_picture(enlarge(digit))]
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_digit_of_brings_back_mnists_own_image(tmp_path, way):
    for digit in DIGITS:
        WAYS[way](digit).save(tmp_path / "digit.png")
        ours = convert_to_digit(open_picture(tmp_path / "digit.png", keeps_alpha=True))
        assert (ours.shape, ours.dtype) == ((1, 28, 28), torch.uint8)
        assert likeness(ours[0], digit) > 0.9


@pytest.mark.parametrize("count", [1_000, pytest.param(70_000, marks=pytest.mark.nightly)])
def test_mnists_own_images_keep_their_digests_as_pictures(count):
    """So one that comes in as a picture is known; 920 have ink at the border."""
    mnist = MNIST("MNIST", ROOT / "data")
    images = torch.cat([mnist.load(train)[0] for train in (True, False)])
    is_at_border = (images.amax(3)[:, 0, [0, -1]] + images.amax(2)[:, 0, [0, -1]]).amax(1) > 0
    assert is_at_border.sum() == 920
    chosen = images[is_at_border | (torch.arange(70_000) % (70_000 // count) == 0)]
    pictures = []
    for image in chosen:
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "png")
        pictures.append(mnist.read_picture(Image.open(file)))
    assert torch.equal(compute_digests(pictures), compute_digests(chosen))


def test_a_picture_with_a_black_border_is_brought_to_mnists_form():
    """Whatever its size: a digit that is too large, too small, or beside the center."""
    digit = DIGITS[0]
    large = F.interpolate(digit[None, None, 3:25, 3:25], (26, 26))[0, 0]
    small = F.interpolate(digit[None, None], (14, 14), mode="area")[0, 0]
    beside = digit.roll(2, 1)
    for levels in (F.pad(large, (1,) * 4), F.pad(small, (7,) * 4), beside):
        assert levels.shape == (28, 28)
        ours = convert_to_digit(make_picture(levels))
        assert not torch.equal(ours[0], levels.byte())
        assert likeness(ours[0], digit) > 0.85
        assert torch.equal(convert_to_digit(Image.fromarray(ours[0].numpy())), ours)


@pytest.mark.parametrize("dataset", ["FashionMNIST", "KMNIST"])
def test_a_picture_for_another_set_is_not_prepared_as_a_digit(dataset):
    shape = torch.zeros(28, 28, dtype=torch.uint8)
    shape[:, 5:20], shape[3, 7] = 180, 90
    picture = Image.fromarray(shape.numpy())
    ours = MNIST(dataset).read_picture(picture)
    assert torch.equal(ours[0], shape)
    assert MNIST(dataset).read_picture(picture.resize((56, 80))).shape == (1, 28, 28)
