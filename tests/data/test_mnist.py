import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.commands import ROOT
from torchvision import datasets

from lora_mnist.data import MNIST, load_images

RAW = ROOT / "data" / "MNIST" / "raw"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
NAMES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


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
    names = [*images.val.names, *images.test.names]
    assert sorted(names) == list(range(10_000))


def test_half_written_files_are_extracted_anew(tmp_path):
    """A fresh clone has four archives; somebody was killed while extracting them."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    contents = (struct.pack(">4I", 0x0803, 20, 28, 28) + b"short", b"", b"\0\0\x08", b"?")
    for name, content in zip(NAMES, contents, strict=True):
        shutil.copy(RAW / f"{name}.gz", raw)
        (raw / name).write_bytes(content)
    with ThreadPoolExecutor() as pool:
        both = pool.map(lambda train: load_images("MNIST", tmp_path, train), [True, False])
        assert [len(labels) for _, labels in both] == [60_000, 10_000]


def test_files_that_are_not_there_are_named_where_no_download_is_possible(tmp_path):
    """Yet a picture is prepared without them."""
    dataset = MNIST(data_dir=tmp_path)
    assert dataset.read_picture(ROOT / "docs" / "repaired.png").shape == (1, 28, 28)
    assert not list(tmp_path.iterdir())
    message = f"^data_dir={tmp_path}: expected the official .gz files in .*$"
    with pytest.raises(ValueError, match=message):
        _ = dataset.sets
