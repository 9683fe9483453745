"""Images as Lightning takes them, without its processes and its training."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms import v2

from lora_mnist.data import ImageDataset, Images, ImageSets
from lora_mnist.data.plan import ImageDataModule, Plan, select


def read_number(path, augment):
    """An image of one pixel, from a file of that name."""
    image = torch.tensor([[[int(path.name)]]], dtype=torch.uint8)
    return augment(image) if augment else image


def numbered(count):
    """Images of one pixel that are their own numbers."""
    labels = torch.zeros(count, dtype=torch.int64)
    return Images([Path(str(number)) for number in range(count)], labels, read=read_number)


def data_of(trainer=None, val=0, augment=None, num_workers=0):
    """93 images to learn in batches of ten."""
    dataset = ImageDataset("toy", ["cat"], 1, eval_batch_size=2, num_workers=num_workers)
    images = ImageSets(numbered(93), numbered(val), numbered(1), {}, {}, None)
    processes = trainer.world_size if trainer else 1
    labels = images.train.labels
    plan = Plan(select(labels, dataset.classes, None), labels, seed=1, processes=processes)
    data = ImageDataModule(dataset, images, plan, augment)
    data.trainer = trainer
    return data


def trainer_of(rank=0, processes=1, **settings):
    """A Trainer's place among several processes and in a training, without either."""
    place = {"global_rank": rank, "world_size": processes}
    limits = {"max_steps": -1, "max_epochs": 1, "accumulate_grad_batches": 1}
    limits |= {"overfit_batches": 0.0, "global_step": 0, "num_training_batches": 10}
    return SimpleNamespace(**place | limits | settings)


def seen(batches):
    """The numbers of the images in each batch."""
    return [images.flatten().tolist() for images, _ in batches]


@pytest.mark.parametrize(
    ("limits", "accumulate", "epochs", "count"),
    [({"max_steps": 30, "max_epochs": -1}, 4, 1, 120), ({"max_epochs": 9}, 1, 3, 10)],
    ids=["one epoch", "several epochs"],
)
def test_the_step_alone_says_which_batch_comes_next(limits, accumulate, epochs, count):
    """A pass has ten batches."""
    trainer = trainer_of(accumulate_grad_batches=accumulate, num_training_batches=count, **limits)
    data = data_of(trainer)
    loader = data.train_dataloader()
    assert len(loader) == count
    batches = []
    for _ in range(epochs):
        trainer.global_step = len(batches) // accumulate
        batches += seen(loader)
    assert batches == list(islice(data.plan.batches(), epochs * count))
    for step in range(len(batches) // accumulate):
        trainer.global_step, place = step, step * accumulate
        rest = seen(data_of(trainer).train_dataloader())
        assert rest == batches[place:][: count - place % count]


def test_several_processes_share_training_and_validate_whole():
    """Each image of a batch is in one of them."""
    shares, validated = [], []
    for rank in (0, 1):
        trainer = trainer_of(rank, 2)
        data = data_of(trainer, val=5)
        shares.append(seen(data.train_dataloader()))
        validated.append(seen(data.val_dataloader()))
    assert validated == [[[0, 1], [2, 3], [4]]] * 2
    for whole, first, second in zip(islice(data.plan.batches(), 10), *shares, strict=True):
        assert (first, second) == (whole[::2], whole[1::2])
    assert data_of(trainer).val_dataloader() == []  # Lightning's word for no validation


def test_each_image_is_augmented_by_itself_and_workers_change_nothing():
    drawn = []
    for workers in (0, 2):
        data = data_of(augment=v2.RandomInvert(), num_workers=workers)
        drawn.append(seen(data.read(islice(data.plan.batches(), 2, 4), 2)))
    assert drawn[0] == drawn[1]
    for given, original in zip(drawn[0], islice(data.plan.batches(), 2, 4), strict=True):
        inverted = [255 - number for number in original]
        assert given not in (original, inverted)  # some are inverted, and some are not
        assert all(number in pair for number, *pair in zip(given, original, inverted, strict=True))
