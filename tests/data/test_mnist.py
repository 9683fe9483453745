from typing import Any

import pytest
import torch
import torchvision.transforms as transforms
from helpers.commands import ROOT
from torchvision.datasets import MNIST

from lora_mnist.data import MNISTDataModule
from lora_mnist.data.read import load_split


def fitted(**changes: Any) -> MNISTDataModule:
    data = MNISTDataModule(data_dir=ROOT / "data", **changes)
    data.prepare_data()
    data.setup("fit")
    return data


def test_splits() -> None:
    data = fitted()
    data.setup("test")
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [
        55_000,
        5_000,
        10_000,
    ]
    assert data.sha256 == {
        split: load_split("MNIST", ROOT / "data", split == "train").sha256
        for split in ("train", "test")
    }
    official = MNIST(ROOT / "data", train=True)
    assert torch.equal(data.train_set.images[:, 0], official.data[:55_000])
    assert torch.equal(data.val_set.labels, official.targets[55_000:])
    assert data.train_set.images.dtype == torch.uint8


def test_what_the_defaults_are() -> None:
    data = MNISTDataModule()
    assert (data.name, data.target, data.targets) == ("mnist", None, None)
    assert (data.batch_size, data.replay, data.val_size, data.seed) == (10, 0, 5000, 0)
    assert MNISTDataModule("FashionMNIST").name == "fashion_mnist"
    assert MNISTDataModule("FashionMNIST", name="clothes").name == "clothes"


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


def test_refuses_a_split_without_training_images() -> None:
    with pytest.raises(ValueError, match="val_size=60000: expected less than 60000"):
        fitted(val_size=60_000)
