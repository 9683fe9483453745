"""Images as Lightning takes them, without its processes and its training."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms import v2

from lora_mnist.data import ImageDataset, ImageSets, ImageTensors
from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.plan import Plan, select


def numbered(count):
    """Images of one pixel that are their own numbers."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return ImageTensors(numbers.view(-1, 1, 1, 1), torch.zeros(count, dtype=torch.int64))


def data_of(trainer=None, count=93, val=0, augment=None, num_workers=0):
    """Images to learn in batches of ten."""
    dataset = ImageDataset("toy", ["cat"], 1, eval_batch_size=2, num_workers=num_workers)
    dataset.mean, dataset.std = 0.5, 0.25
    train = numbered(count)
    images = ImageSets(train, numbered(val), numbered(1), {}, {}, None)
    processes = trainer.world_size if trainer else 1
    selection = select(train.labels, dataset.classes, None)
    plan = Plan(selection, train.labels, batch_size=10, seed=1, processes=processes)
    data = ImageDataModule(dataset, images, plan, augment)
    data.trainer = trainer
    return data


def trainer_of(rank=0, processes=1, **settings):
    """A Trainer's place among several processes and in a training, without either."""
    place = {"global_rank": rank, "world_size": processes}
    limits = {"max_steps": -1, "max_epochs": 1, "accumulate_grad_batches": 1}
    limits |= {"overfit_batches": 0.0, "global_step": 0, "num_training_batches": 10**9}
    return SimpleNamespace(**place | limits | settings)


def seen(batches):
    """The numbers of the images in each batch."""
    return [images.flatten().tolist() for images, _ in batches]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("limits", [{"max_steps": 30, "max_epochs": -1}, {"max_epochs": 9}])
def test_the_step_alone_says_which_batch_comes_next(limits, accumulate):
    """Of 93 images, which are ten batches a pass, in one epoch of Lightning's or in several."""
    trainer = trainer_of(accumulate_grad_batches=accumulate, **limits)
    data = data_of(trainer)
    loader = data.train_dataloader()
    trainer.num_training_batches = len(loader)
    batches, places = [], []
    for _ in range(3 if "max_steps" not in limits else 1):
        trainer.global_step = len(places)
        for number, batch in enumerate(seen(loader)):
            if number % accumulate == 0:
                places.append(len(batches))
            batches.append(batch)
    assert batches == list(islice(data.plan.batches(), len(batches)))
    assert len(batches) == (30 * accumulate if "max_steps" in limits else 30)
    for step, place in enumerate(places):
        trainer.global_step = step
        rest = seen(data_of(trainer).train_dataloader())
        assert rest == batches[place:][: len(rest)]
        assert (place + len(rest)) % len(loader) == 0


def test_overfitting_sees_the_same_batches_in_every_epoch():
    trainer = trainer_of(overfit_batches=3, num_training_batches=3)
    loader = data_of(trainer).train_dataloader()
    first = seen(loader)
    trainer.global_step = 3
    assert seen(loader) == first
    trainer.global_step = 4
    assert seen(loader) == first[1:]


def test_several_processes_share_training_and_validation():
    """Each image of a batch is in one of them, and no validation image is counted twice."""
    shares, validated = [], []
    for rank in (0, 1):
        trainer = trainer_of(rank, 2, num_training_batches=10)
        data = data_of(trainer, val=5)
        shares.append(seen(data.train_dataloader()))
        validated.append(seen(data.val_dataloader()))
    assert validated == [[[0, 2], [4]], [[1, 3]]]
    for whole, first, second in zip(islice(data.plan.batches(), 10), *shares, strict=True):
        assert (first, second) == (whole[::2], whole[1::2])
    assert data_of(trainer).val_dataloader() == []  # Lightning's word for no validation


def test_workers_that_read_ahead_change_nothing():
    drawn = []
    for workers in (0, 2):
        data = data_of(augment=v2.RandomInvert(), num_workers=workers)
        drawn.append(seen(data.read(islice(data.plan.batches(), 2, 4), 2)))
    assert drawn[0] == drawn[1]
    assert drawn[0] != list(islice(data.plan.batches(), 2, 4))  # some are inverted
