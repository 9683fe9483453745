import errno
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.datasets
from helpers.commands import ROOT

from lora_mnist.data.read import _read, _resources, class_names, load_images, load_split

RAW = ROOT / "data" / "MNIST" / "raw"
NAMES = [
    f"{split}-{kind}"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A data folder as a fresh clone has it: four archives, nothing extracted."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in RAW.glob("*.gz"):
        shutil.copy(archive, raw)
    return tmp_path / "data"


def idx(*shape: int, content: bytes) -> bytes:
    """An IDX file of unsigned bytes."""
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + content


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    """A small dataset of twenty images, extracted, without the archives."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        if "labels" in name:
            (raw / name).write_bytes(idx(20, content=bytes(range(10)) * 2))
        else:
            (raw / name).write_bytes(idx(20, 28, 28, content=b"\x07" * 20 * 784))
    return tmp_path / "data"


LOAD = "from pathlib import Path; from lora_mnist.data.read import load_images; "


def start_loading(data_dir: Path) -> "subprocess.Popen[str]":
    code = f"{LOAD} print(len(load_images('MNIST', Path({str(data_dir)!r}), True)[1]))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_extract_at_once(archives: Path) -> None:
    processes = [start_loading(archives) for _ in range(2)]
    assert [p.communicate(timeout=120)[0] for p in processes] == ["60000\n"] * 2
    left = {path.name for path in (archives / "MNIST" / "raw").iterdir()}
    assert left == {*NAMES, *(f"{name}.gz" for name in NAMES)}


@pytest.mark.slow
def test_killed_while_extracting(archives: Path) -> None:
    process = start_loading(archives)
    deadline = time.monotonic() + 60
    while not list(archives.glob(".extract-*/MNIST/raw/train-images-idx3-ubyte")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    complete = 16 + 60_000 * 28 * 28
    extracted = archives / "MNIST" / "raw" / "train-images-idx3-ubyte"
    assert not extracted.exists() or extracted.stat().st_size == complete
    assert len(load_images("MNIST", archives, True)[1]) == 60_000
    assert not list(archives.glob(".extract-*"))


def test_extraction_leaves_the_archives_alone(archives: Path) -> None:
    before = {path: path.stat().st_ino for path in archives.rglob("*.gz")}
    (archives / ".extract-dead" / "MNIST").mkdir(parents=True)
    load_images("MNIST", archives, False)
    assert {path: path.stat().st_ino for path in archives.rglob("*.gz")} == before
    assert not list(archives.glob(".extract-*"))


def test_a_small_dataset_without_archives(extracted: Path) -> None:
    images, labels = load_images("MNIST", str(extracted), True)
    assert images.shape == (20, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [*range(10), *range(10)]


DAMAGED = {
    "cut short": ("t10k-images-idx3-ubyte", idx(20, 28, 28, content=b"\x07" * 99), "damaged"),
    "no header": ("t10k-labels-idx1-ubyte", b"\x00\x00\x08", "t10k-labels-idx1-ubyte damaged"),
    "empty": ("t10k-labels-idx1-ubyte", b"", "MNIST: t10k-labels-idx1-ubyte damaged"),
    "of no type": ("t10k-labels-idx1-ubyte", b"\x00\x00\x0a\x01\x00\x00\x00\x01\x01", "damaged"),
    "of another type": ("t10k-labels-idx1-ubyte", b"\x00\x00\x09\x01\0\0\0\x01\x01", "damaged"),
    "of another shape": (
        "t10k-images-idx3-ubyte",
        idx(20, 14, 56, content=b"\x07" * 20 * 784),
        r"images of shape 20x14x56 \(torch.uint8\)",
    ),
    "without images": (
        "t10k-images-idx3-ubyte",
        idx(20, 0, 28, content=b""),
        "t10k-images-idx3-ubyte damaged|images of shape 20x0x28",
    ),
    "zeroed": (
        "t10k-images-idx3-ubyte",
        idx(20, 28, 28, content=bytes(20 * 784)),
        "20 of 20 images blank",
    ),
    "zeroed in part": (
        "t10k-images-idx3-ubyte",
        idx(20, 28, 28, content=b"\x07" * 15 * 784 + bytes(5 * 784)),
        "5 of 20 images blank",
    ),
    "with fewer labels": (
        "t10k-labels-idx1-ubyte",
        idx(19, content=bytes(19)),
        "19 labels for 20 images",
    ),
    "with a label too large": (
        "t10k-labels-idx1-ubyte",
        idx(20, content=bytes(19) + b"\xc8"),
        "labels from 0 to 200",
    ),
    "with one label": (
        "t10k-labels-idx1-ubyte",
        idx(20, content=bytes(20)),
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte: all labels 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_described(extracted: Path, damage: str) -> None:
    name, content, message = DAMAGED[damage]
    (extracted / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_images("MNIST", extracted, False)
    assert str(caught.value).startswith(f"data_dir={extracted}: MNIST: ")
    assert "expected the official .gz files in" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_extracted_again(archives: Path, damage: str) -> None:
    raw = archives / "MNIST" / "raw"
    for name in NAMES:
        (raw / name).write_bytes(DAMAGED[damage][1])
    assert len(load_images("MNIST", archives, False)[1]) == 10_000


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**36)


@pytest.mark.parametrize("place", [os.mkfifo, sparse])
@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_what_is_no_file_is_not_read(extracted: Path, name: str, place: Any) -> None:
    path = extracted / "MNIST" / "raw" / name
    path.unlink()
    place(path)
    with pytest.raises(ValueError, match=rf"MNIST: {name} damaged \(no file, or too large\)"):
        load_images("MNIST", extracted, False)


@pytest.mark.parametrize("place", [os.mkfifo, sparse])
def test_an_archive_that_is_no_file_is_damaged(archives: Path, place: Any) -> None:
    raw = archives / "MNIST" / "raw"
    place(raw / "more.gz")
    assert len(load_images("MNIST", archives, False)[1]) == 10_000
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"")
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    place(raw / "t10k-images-idx3-ubyte.gz")
    load_split.cache_clear()
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz damaged"):
        load_images("MNIST", archives, False)


def test_the_official_images_are_known(archives: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = load_split("MNIST", archives, False)
    assert split.sha256 == "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"
    assert not caplog.records
    for path in archives.rglob("*.gz"):
        path.unlink()
    path = archives / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load_split.cache_clear()
    assert load_split("MNIST", archives, False).sha256 != split.sha256
    (record,) = caplog.records
    expected = f"data_dir={archives}: the test images are not MNIST's official ones"
    assert record.getMessage() == expected


def test_the_sha256_is_that_of_pixels_and_labels(extracted: Path) -> None:
    raw = extracted / "MNIST" / "raw"
    images, labels = ((raw / name).read_bytes() for name in NAMES[2:])
    expected = hashlib.sha256(images[16:] + labels[8:]).hexdigest()
    assert load_split("MNIST", extracted, False).sha256 == expected


def test_a_changed_byte_is_noticed_beside_the_archive(archives: Path) -> None:
    load_images("MNIST", archives, False)
    changed = archives / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    original = changed.read_bytes()
    changed.write_bytes(original[:-1] + bytes([(original[-1] + 1) % 10]))
    load_split.cache_clear()
    load_images("MNIST", archives, False)
    assert changed.read_bytes() == original


def test_a_damaged_archive_beside_good_files_does_not_matter(archives: Path) -> None:
    load_images("MNIST", archives, False)
    for archive in archives.rglob("*.gz"):
        archive.write_bytes(archive.read_bytes()[:1000])
    load_split.cache_clear()
    assert len(load_images("MNIST", archives, False)[1]) == 10_000


@pytest.mark.parametrize("left", [1000, 3, 0])
def test_a_truncated_archive_is_named(archives: Path, left: int) -> None:
    archive = archives / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:left])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz damaged"):
        load_images("MNIST", archives, True)
    assert not list(archives.rglob("*-ubyte"))


def test_missing_files_without_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="idx1-ubyte missing, and no download possible; expected"):
        load_images("MNIST", tmp_path / "nowhere", True)


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="data_dir=.*expected a folder that can be read and"):
        load_images("MNIST", tmp_path / "file", True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_so(
    archives: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def extract(*_: Any, **__: Any) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", extract)
    with pytest.raises(OSError, match="no space left to extract MNIST") as caught:
        load_images("MNIST", archives, True)
    assert caught.value.errno == code
    assert not list(archives.glob(".extract-*"))


def test_too_few_file_descriptors_are_no_missing_files(
    archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", extract)
    with pytest.raises(ValueError, match=r"expected a folder that can be .*Too many open files"):
        load_images("MNIST", archives, True)


def test_qmnist_has_more_than_one_number_a_label(tmp_path: Path) -> None:
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    content = torch.arange(3 * 8).view(3, 8).tolist()
    numbers = [number for row in content for number in row]
    header = struct.pack(">3I", 0x0C02, 3, 8)
    (raw / "qmnist-test-labels-idx2-int").write_bytes(header + struct.pack(">24i", *numbers))
    (raw / "qmnist-test-images-idx3-ubyte").write_bytes(idx(3, 28, 28, content=b"\x07" * 3 * 784))
    with pytest.raises(ValueError, match="labels from 0 to 16"):
        load_images("QMNIST", tmp_path, False)
    numbers[16] = 9
    (raw / "qmnist-test-labels-idx2-int").write_bytes(header + struct.pack(">24i", *numbers))
    images, labels, _ = _read(torchvision.datasets.QMNIST, tmp_path, train=False)
    assert images.shape == (3, 1, 28, 28)
    assert labels.tolist() == [0, 8, 9]


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "KMNIST", "QMNIST"])
def test_every_split_has_two_files(dataset: str) -> None:
    family = getattr(torchvision.datasets, dataset)
    for train in (True, False):
        (images, _), (labels, _) = _resources(family, train, ".gz")
        assert "images" in images
        assert "labels" in labels
        assert ("t10k" in images or "test" in images) is not train
    assert len(class_names(dataset)) == 10


def test_an_unknown_dataset() -> None:
    with pytest.raises(ValueError, match="dataset=CIFAR10: expected one of MNIST, FashionMNIST"):
        load_images("CIFAR10", "data", True)
