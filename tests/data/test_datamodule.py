from typing import Any

import pytest
import torch
from helpers.commands import ROOT
from helpers.trainers import trainer_of

from lora_mnist.data import MNISTDataModule


def fitted(**changes: Any) -> MNISTDataModule:
    data = MNISTDataModule(data_dir=ROOT / "data", **changes)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize(("target", "count"), [(9, 5_949), ([9], 5_949), ([3, 5], 6_131 + 5_421)])
def test_target_filters_the_training_set_alone(target: Any, count: int) -> None:
    data = fitted(target=target, val_size=0)
    assert data.target == target
    assert len(data.train_set) == count
    wanted = [target] if isinstance(target, int) else target
    assert data.targets == wanted
    assert set(data.train_set.labels.tolist()) == set(wanted)
    data = fitted(target=target)
    data.setup("test")
    assert set(data.val_set.labels.tolist()) == set(range(10))
    assert len(data.test_set) == 10_000


def test_a_batch_is_one_index_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fitted()
    monkeypatch.setattr(type(data.train_set), "__getitem__", None)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (10, 1, 28, 28)
    assert labels.shape == (10,)


def test_processes_share_the_test_images_and_count_none_twice() -> None:
    data = fitted()
    data.setup("test")
    shares = []
    for rank in range(3):
        data.trainer = trainer_of(rank, 3)
        shares += [labels for _, labels in data.test_dataloader()]
    assert torch.equal(torch.cat(shares).bincount(), data.test_set.labels.bincount())


def test_no_validation_set() -> None:
    assert fitted(val_size=0).val_dataloader() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 10}, "target=10: expected null, a class from 0 to 9 or a list"),
        ({"target": -1}, "target=-1: expected"),
        ({"target": "nine"}, "target=nine: expected"),
        ({"target": []}, r"target=\[\]: expected"),
        ({"target": [1, 11]}, r"target=\[1, 11\]: expected"),
        ({"target": [1, 1]}, r"target=\[1, 1\]: expected each class once"),
        ({"target": True}, "target=True: expected"),
        ({"batch_size": 0}, "batch_size=0: expected an integer >= 1"),
        ({"eval_batch_size": 2.5}, "eval_batch_size=2.5: expected"),
        ({"val_size": -1}, "val_size=-1: expected an integer >= 0"),
        ({"replay": -1, "target": 9}, "replay=-1: expected an integer >= 0"),
        ({"replay": 9}, "replay=9: expected 0, since all classes are trained on"),
        ({"hardness": 1}, "hardness=1: expected a number from 0 to below 1"),
        ({"hardness": True}, "hardness=True: expected a number"),
        ({"mean": 33.3}, "mean=33.3: expected a number from 0 to 1"),
        ({"mean": "x"}, "mean=x: expected a number from 0 to 1"),
        ({"mean": float("nan")}, "mean=nan: expected a number from 0 to 1"),
        ({"std": 0}, "std=0: expected a number > 0"),
        ({"std": 1e-38}, "std=1e-38: expected a number > 0"),
        ({"std": float("inf")}, "std=inf: expected a number > 0"),
        ({"std": 10**400}, "std=10*: expected a number > 0"),
        ({"seed": -1}, "seed=-1: expected an integer >= 0"),
        ({"dataset": "CIFAR10"}, "dataset=CIFAR10: expected one of MNIST"),
    ],
)
def test_refuses_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNISTDataModule(**changes)


def test_refuses_what_cannot_be_replayed() -> None:
    with pytest.raises(ValueError, match="replay=1: expected at most 0, the training images"):
        fitted(target=list(range(10)), replay=1)
    with pytest.raises(ValueError, match="replay=99999: expected at most 49534, the training"):
        fitted(target=9, replay=99_999)


def test_refuses_batches_that_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="batch_size=10: expected a multiple of the 3 processes"):
        MNISTDataModule().batch_size_per_process(3)
    with pytest.raises(ValueError, match="replay=9: expected a multiple of the 2 processes"):
        MNISTDataModule(target=9, replay=9).batch_size_per_process(2)
