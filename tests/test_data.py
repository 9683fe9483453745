import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms as transforms
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

from lora_mnist.data import ImageTensors, MNISTDataModule, WithReplay, load_images

RAW = ROOT / "data" / "MNIST" / "raw"
NAMES = [
    f"{split}-{kind}"
    for split in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
]


def make(**changes: Any) -> MNISTDataModule:
    arguments = {
        "name": "mnist",
        "dataset": "MNIST",
        "data_dir": str(ROOT / "data"),
        "digit": None,
        "batch_size": 10,
        "replay": 0,
        "hardness": 0.0,
        "eval_batch_size": 1000,
        "val_size": 5000,
        "mean": 0.1307,
        "std": 0.3081,
        "seed": 0,
    }
    return MNISTDataModule(**{**arguments, **changes})


def fitted(**changes: Any) -> MNISTDataModule:
    data = make(**changes)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A data folder as a fresh clone has it: four archives, nothing extracted."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in RAW.glob("*.gz"):
        shutil.copy(archive, raw)
    return tmp_path / "data"


def test_splits() -> None:
    data = fitted()
    data.setup("test")
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [
        55_000,
        5_000,
        10_000,
    ]
    official = MNIST(ROOT / "data", train=True)
    assert torch.equal(data.train_set.images[:, 0], official.data[:55_000])
    assert torch.equal(data.val_set.labels, official.targets[55_000:])
    assert data.train_set.images.dtype == torch.uint8


@pytest.mark.parametrize(("digit", "count"), [(9, 5_949), ([9], 5_949), ([3, 5], 6_131 + 5_421)])
def test_digit_filters_the_training_set_alone(digit: Any, count: int) -> None:
    data = fitted(digit=digit, val_size=0)
    assert len(data.train_set) == count
    wanted = {digit} if isinstance(digit, int) else set(digit)
    assert set(data.train_set.labels.tolist()) == wanted
    data = fitted(digit=digit)
    data.setup("test")
    assert set(data.val_set.labels.tolist()) == set(range(10))
    assert len(data.test_set) == 10_000


def test_batches_equal_those_of_torchvision_bit_for_bit() -> None:
    data = fitted()
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    official = MNIST(ROOT / "data", train=True, transform=transform)
    expected = torch.stack([official[i][0] for i in range(55_000, 55_100)])
    images, labels = next(iter(data.val_dataloader()))
    normalised, _ = data.on_after_batch_transfer((images, labels), 0)
    assert torch.equal(normalised[:100], expected)
    assert images.dtype == torch.uint8


def test_a_batch_is_one_index_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fitted()
    monkeypatch.setattr(type(data.train_set), "__getitem__", None)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (10, 1, 28, 28)
    assert labels.shape == (10,)


def labels_of_epoch(data: MNISTDataModule) -> list[int]:
    return torch.cat([labels for _, labels in data.train_dataloader()]).tolist()


def test_order_depends_on_the_seed_alone() -> None:
    first = labels_of_epoch(fitted(digit=[3, 5]))
    torch.rand(7)
    assert labels_of_epoch(fitted(digit=[3, 5])) == first
    assert labels_of_epoch(fitted(digit=[3, 5], seed=1)) != first
    assert sorted(first) == sorted(labels_of_epoch(fitted(digit=[3, 5], seed=1)))


def test_without_a_seed_the_order_is_that_of_a_plain_dataloader() -> None:
    data = fitted(digit=9, seed=None)
    torch.manual_seed(3)
    images_and_labels = TensorDataset(data.train_set.images, data.train_set.labels)
    plain = DataLoader(images_and_labels, batch_size=10, shuffle=True)
    expected = [images for images, _ in plain]
    torch.manual_seed(3)
    ours = [images for images, _ in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_replay_goes_evenly_over_the_other_classes() -> None:
    data = fitted(digit=9, replay=90)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (100, 1, 28, 28)
    assert labels[:10].tolist() == [9] * 10
    assert torch.bincount(labels[10:]).tolist() == [10] * 9
    again = next(iter(fitted(digit=9, replay=90).train_dataloader()))
    assert torch.equal(images, again[0])
    other = next(iter(fitted(digit=9, replay=90, seed=1).train_dataloader()))
    assert not torch.equal(images, other[0])


def test_replay_leaves_the_targets_order_alone() -> None:
    plain, replayed = fitted(digit=9), fitted(digit=9, replay=9)
    for (images, _), (both, _) in zip(
        plain.train_dataloader(), replayed.train_dataloader(), strict=True
    ):
        assert torch.equal(images, both[: len(images)])


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts: list[int], count: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    others = ImageTensors(torch.arange(len(labels)), labels)
    target = ImageTensors(torch.tensor([-1]), torch.tensor([-1]))
    shares = [WithReplay(target, others, 2 * count, 0, rank, 2) for rank in (0, 1)]
    whole = WithReplay(target, others, 2 * count, 0)
    drawn: list[int] = []
    for _ in range(6):
        images = whole.__getitems__([0])[0][1:]
        halves = [share.__getitems__([0])[0][1:] for share in shares]
        assert torch.equal(torch.stack(halves, dim=1).flatten(), images)
        drawn += images.tolist()
    assert labels[drawn].tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        passes = [of_class[k : k + size] for k in range(0, len(of_class), size)]
        assert all(len(set(one_pass)) == len(one_pass) for one_pass in passes)


def test_no_validation_set() -> None:
    assert fitted(val_size=0).val_dataloader() == []


class KnowsTheDark(nn.Module):
    """The darker the image, the surer that it is a three."""

    def forward(self, images: Tensor) -> Tensor:
        dark, zero = -20 * images.mean(dim=(1, 2, 3)), images.new_zeros(len(images))
        return torch.stack([zero, zero, zero, dark, *[zero] * 6], dim=1)


def error_probabilities(net: nn.Module, data: MNISTDataModule, images: ImageTensors) -> Tensor:
    pixels, labels = data.on_after_batch_transfer((images.images, images.labels), 0)
    return 1 - net(pixels).double().softmax(dim=1)[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("hardness", [0.3, 0.8])
def test_weights_follow_the_probability_of_an_error(hardness: float) -> None:
    data, net = fitted(digit=[0, 9], replay=16, hardness=hardness), KnowsTheDark()
    data.rate(net)
    data.setup("fit")  # as the Trainer does
    errors = error_probabilities(net, data, data.train_set)
    expected = (1 - hardness) / len(errors) + hardness * errors / errors.sum()
    torch.testing.assert_close(data.draw_weights["target"], expected)
    errors = error_probabilities(net, data, data.replay_set)
    for c in range(1, 9):  # each class is drawn from by itself
        of_class = data.replay_set.labels == c
        share = errors[of_class] / errors[of_class].sum()
        expected = (1 - hardness) / of_class.sum() + hardness * share
        torch.testing.assert_close(data.draw_weights["replay"][of_class], expected)


def test_hard_images_come_first_and_every_image_once() -> None:
    data, net = fitted(digit=3, replay=90, hardness=0.9), KnowsTheDark()
    data.rate(net)
    data.setup("fit")  # as the Trainer does
    errors, labels = data.draw_weights["target"], data.train_set.labels
    order = list(data.train_dataloader().sampler)
    assert sorted(order) == list(range(len(labels)))
    assert errors[order[:500]].mean() > 1.2 * errors[order[-500:]].mean()
    _, labels = next(iter(data.train_dataloader()))
    assert labels[10:].bincount().tolist() == [10, 10, 10, 0, *[10] * 6]


def test_without_rating_hardness_changes_nothing() -> None:
    plain, hard = (fitted(digit=9, replay=9, hardness=h).train_dataloader() for h in (0, 0.8))
    for (images, _), (same, _) in islice(zip(plain, hard, strict=True), 5):
        assert torch.equal(images, same)


def test_a_network_that_never_errs_draws_all_alike() -> None:
    class Knows(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1000.0, *[0.0] * 9]).expand(len(images), 10)

    data = fitted(digit=0, hardness=0.8)
    data.rate(Knows())
    weights = data.draw_weights["target"]
    assert torch.equal(weights, weights[:1].expand(len(weights)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digit": 10}, "digit=10: expected null, a class from 0 to 9 or a list"),
        ({"digit": -1}, "digit=-1: expected"),
        ({"digit": "nine"}, "digit=nine: expected"),
        ({"digit": []}, r"digit=\[\]: expected"),
        ({"digit": [1, 11]}, r"digit=\[1, 11\]: expected"),
        ({"digit": True}, "digit=True: expected"),
        ({"batch_size": 0}, "batch_size=0: expected an integer >= 1"),
        ({"eval_batch_size": 2.5}, "eval_batch_size=2.5: expected"),
        ({"val_size": -1}, "val_size=-1: expected an integer >= 0"),
        ({"replay": -1, "digit": 9}, "replay=-1: expected an integer >= 0"),
        ({"replay": 9}, "replay=9: expected 0, since digit=null"),
        ({"hardness": 1}, "hardness=1: expected a number from 0 to below 1"),
        ({"hardness": True}, "hardness=True: expected a number"),
        ({"std": 0}, "std=0: expected a number > 0"),
        ({"dataset": "CIFAR10"}, "dataset=CIFAR10: expected one of MNIST"),
    ],
)
def test_refuses_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_refuses_a_split_without_training_images() -> None:
    with pytest.raises(ValueError, match="val_size=60000: expected less than 60000"):
        fitted(val_size=60_000)
    with pytest.raises(ValueError, match="batch_size=10: expected a multiple of the 3 processes"):
        make().batch_size_per_process(3)
    with pytest.raises(ValueError, match="replay=9: expected a multiple of the 2 processes"):
        make(digit=9, replay=9).batch_size_per_process(2)


LOAD = "from pathlib import Path; from lora_mnist.data import load_images; "


def start_loading(data_dir: Path) -> "subprocess.Popen[str]":
    code = f"{LOAD} print(len(load_images('MNIST', Path({str(data_dir)!r}), True)[1]))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_extract_at_once(archives: Path) -> None:
    processes = [start_loading(archives) for _ in range(2)]
    assert [p.communicate(timeout=120)[0] for p in processes] == ["60000\n"] * 2
    left = {path.name for path in (archives / "MNIST" / "raw").iterdir()}
    assert left == {*NAMES, *(f"{name}.gz" for name in NAMES)}


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


def test_a_damaged_extracted_file_is_extracted_again(archives: Path) -> None:
    raw = archives / "MNIST" / "raw"
    for name in NAMES:
        (raw / name).write_bytes(b"\x00\x00\x08\x03 cut short")
    assert len(load_images("MNIST", archives, False)[1]) == 10_000


def test_a_truncated_archive_is_named(archives: Path) -> None:
    archive = archives / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz damaged"):
        load_images("MNIST", archives, True)
    assert not list(archives.rglob("*-ubyte"))


def test_missing_files_without_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files missing, and no download possible; expected the"):
        load_images("MNIST", tmp_path / "nowhere", True)


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="data_dir=.*expected a readable folder"):
        load_images("MNIST", tmp_path / "file", True)
