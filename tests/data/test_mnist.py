import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.commands import ROOT
from torchvision.datasets import MNIST

from lora_mnist.data import ImageTensors, MNISTDataModule, load_images

RAW = ROOT / "data" / "MNIST" / "raw"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
NAMES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(*shape, content):
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + content


def test_images_are_those_of_torchvision():
    data = MNISTDataModule(data_dir=ROOT / "data")
    data.setup("fit")
    data.setup("test")
    official = MNIST(ROOT / "data", train=True)
    assert torch.equal(data.train_set.images[:, 0], official.data[:55_000])
    assert torch.equal(data.val_set.labels, official.targets[55_000:])
    assert data.sha256["test"].startswith("c3f9adf9c66efb57")


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
    data = MNISTDataModule(data_dir=ROOT / "data", val_from="test", val_size=4000)
    data.setup("fit")
    data.setup("test")
    sizes = [len(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert sizes == [60_000, 4_000, 6_000]
    both = torch.cat([data.val_set.labels, data.test_set.labels])
    everything = load_images("MNIST", ROOT / "data", train=False)[1]
    assert both.bincount().tolist() == everything.bincount().tolist()


def test_test_images_that_are_learnt_as_mistakes_are_left_out(caplog):
    images, labels = load_images("MNIST", ROOT / "data", train=False)
    data = MNISTDataModule(data_dir=ROOT / "data")
    data.setup("fit")
    mistakes = ImageTensors(images[:15], labels[:15]), ImageTensors(images[15:20], labels[15:20])
    data = data.with_mistakes(*mistakes)
    for stage in ("test", "fit", "test"):
        data.setup(stage)
    assert len(data.train_set) == 55_000 + 15
    assert data.select(None).target_indices.tolist() == list(range(55_000, 55_015))
    learnt = {image.numpy().tobytes() for image in images[:15]}
    tested = data.test_set.take(range(len(data.test_set)))[0]
    assert len(tested) == 10_000 - 15
    assert not any(image.numpy().tobytes() in learnt for image in tested)
    assert "15 test images are among the mistakes to learn, and left out" in caplog.text
