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


def idx(*shape, content):
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + content


def test_images_are_those_of_torchvision():
    images = MNIST(data_dir=ROOT / "data").sets
    official = datasets.MNIST(ROOT / "data", train=True)
    assert torch.equal(images.train.images[:, 0], official.data[:55_000])
    assert torch.equal(images.val.labels, official.targets[55_000:])
    assert list(images.val.names())[:2] == [55_000, 55_001]
    assert images.sha256["test"].startswith("a0863a96c44e5666")


def test_half_written_files_are_extracted_anew_by_one_process(tmp_path):
    """A fresh clone has four archives; somebody was killed while extracting them."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    contents = (idx(20, 28, 28, content=b"short"), b"", b"\0\0\x08", b"?")
    for name, content in zip(NAMES, contents, strict=True):
        shutil.copy(RAW / f"{name}.gz", raw)
        (raw / name).write_bytes(content)

    def count(train):
        return len(load_images("MNIST", tmp_path, train)[1])

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(count, [True, True, False])) == [60_000, 60_000, 10_000]
    assert {path.name for path in raw.iterdir()} == {*NAMES, *(f"{name}.gz" for name in NAMES)}


def test_damaged_files_are_named_where_no_download_is_possible(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for images, labels in (NAMES[:2], NAMES[2:]):
        (raw / images).write_bytes(idx(20, 28, 28, content=bytes(20 * 784))[:-1])
        (raw / labels).write_bytes(idx(20, content=bytes(20)))
    message = f"^data_dir={tmp_path}: expected the official .gz files in .*$"
    with pytest.raises(ValueError, match=message):
        load_images("MNIST", tmp_path, True)


def test_validation_images_may_be_held_out_of_the_test_images():
    images = MNIST(data_dir=ROOT / "data", val_from="test", val_size=4000).sets
    assert [len(images.train), len(images.val), len(images.test)] == [60_000, 4_000, 6_000]
    assert images.held_out == {"val": "test"}
    both = torch.cat([images.val.labels, images.test.labels])
    everything = load_images("MNIST", ROOT / "data", train=False)[1]
    assert both.bincount().tolist() == everything.bincount().tolist()
    names = [*images.val.names(), *images.test.names()]
    assert sorted(names) == list(range(10_000))


def test_no_image_is_read_to_prepare_a_picture(tmp_path):
    dataset = MNIST(data_dir=tmp_path / "none")
    assert dataset.read_picture(ROOT / "docs" / "repaired.png").shape == (1, 28, 28)
    assert not (tmp_path / "none").exists()
