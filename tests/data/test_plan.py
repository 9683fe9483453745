import hashlib
import random
from itertools import islice
from types import SimpleNamespace

import numpy
import pytest
import torch
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from lora_mnist.data import ImageDataModule, ImageTensors, MNISTDataModule
from lora_mnist.data.plan import (
    Augmented,
    Selection,
    TrainingLoader,
    batches_a_pass,
    plan,
    seed_generators,
)

LABELS = torch.arange(203) % 5


def select(targets, labels=LABELS, frequency=None):
    is_target = torch.isin(labels, torch.tensor(targets))
    indices = is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0]
    return Selection(targets, *indices, frequency or {})


def trainer_of(rank=0, processes=1, **settings):
    """A Trainer's place among several processes and in a training, without either."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    place = {"global_rank": rank, "world_size": processes, "strategy": strategy}
    limits = {"max_steps": -1, "max_epochs": 1, "accumulate_grad_batches": 1}
    limits |= {"overfit_batches": 0.0, "global_step": 0, "num_training_batches": 10**9}
    return SimpleNamespace(**place | limits | settings)


def loader_of(count, trainer):
    """A loader of ``count`` images in batches of ten; an image is its own number."""
    selection = select([0], torch.zeros(count))

    def make_plan():
        return plan(selection, torch.zeros(count), batch_size=10, processes=trainer.world_size)

    def read(batches, first):
        return [batch[trainer.global_rank :: trainer.world_size] for batch in batches]

    return TrainingLoader(make_plan, read, batches_a_pass(selection, 10), trainer)


# (target, replay, seed, rank, processes): SHA-256 of the first thirty batches. Recorded
# once: whoever trains with a seed may rely on its batches.
RECORDED = {
    (None, 0, 0, 0, 1): "1180ff0c08e71c17",
    (None, 0, None, 0, 1): "1af03cfeab3d9690",
    (9, 90, 0, 0, 1): "b5f11fce6e2c6fb8",
    ((3, 5), 90, 0, 1, 2): "d6bfb3157c9f6064",
}


@pytest.mark.parametrize("way", RECORDED, ids=str)
def test_images_come_in_the_recorded_order(way):
    target, replay, seed, rank, processes = way
    data = MNISTDataModule(data_dir=ROOT / "data", replay=replay, seed=seed)
    data.setup("fit")
    data = data.training_on(data.select(target))
    data.trainer = trainer_of(rank, processes)
    torch.manual_seed(3)
    digest = hashlib.sha256()
    for images, labels in islice(data.train_dataloader(), 30):
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == RECORDED[way]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("limits", [{"max_steps": 30, "max_epochs": -1}, {"max_epochs": 9}])
def test_the_step_alone_says_which_batch_comes_next(limits, accumulate):
    """Of 93 images, which are ten batches a pass, in one epoch of Lightning's or in several."""
    trainer = trainer_of(accumulate_grad_batches=accumulate, **limits)
    loader = loader_of(93, trainer)
    trainer.num_training_batches = len(loader)
    batches, places = [], []
    for _ in range(3 if "max_steps" not in limits else 1):
        trainer.global_step = len(places)
        for number, batch in enumerate(loader):
            if number % accumulate == 0:
                places.append(len(batches))
            batches.append(batch)
    assert batches == list(islice(loader.make_plan(), len(batches)))
    assert len(batches) == (30 * accumulate if "max_steps" in limits else 30)
    for step, place in enumerate(places):
        trainer.global_step = step
        rest = list(loader_of(93, trainer))
        assert rest == batches[place:][: len(rest)]
        assert (place + len(rest)) % len(loader) == 0


def test_workers_that_read_ahead_change_nothing():
    data = ImageDataModule("toy", [], 1, num_workers=2, augment=v2.RandomHorizontalFlip(), seed=1)
    data.train_set = ImageTensors(torch.arange(40 * 9).reshape(40, 1, 3, 3), torch.arange(40))
    drawn = {}
    for workers in (0, 2):
        data.num_workers = workers
        batches = data.read(islice(data.plan(), 2, 4), 2)
        drawn[workers] = [images for images, _ in batches]
    assert all(map(torch.equal, drawn[0], drawn[2]))


def test_an_odd_number_of_images_is_shared_out():
    """One is drawn twice, so that both processes take equally many steps."""
    whole = list(
        islice(plan(select([0], torch.zeros(7)), torch.zeros(7), batch_size=4, processes=2), 2)
    )
    assert [len(batch) for batch in whole] == [4, 4]
    assert {i for batch in whole for i in batch} == set(range(7))
    shares = [
        list(islice(loader_of(7, trainer_of(r, 2, num_training_batches=1)), 1)) for r in (0, 1)
    ]
    assert [len(batch) for (batch,) in shares] == [4, 4]


def test_overfitting_sees_the_same_batches_in_every_epoch():
    trainer = trainer_of(overfit_batches=3, num_training_batches=3)
    loader = loader_of(93, trainer)
    first = list(loader)
    trainer.global_step = 3
    assert list(loader) == first
    trainer.global_step = 4
    assert list(loader) == first[1:]


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts, count):
    others = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.cat([torch.full((60,), 9), others])
    selection = select([9], labels)
    sizes = {"batch_size": 2, "replay": 2 * count}
    drawn = []
    both = (plan(selection, labels, processes=processes, **sizes) for processes in (1, 2))
    for alone, together in islice(zip(*both, strict=True), 30):
        assert alone == together  # each process takes every second of these
        drawn += alone[2:]
    assert (labels[drawn]).tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        for k in range(0, len(of_class), size):
            once = of_class[k : k + size]
            assert len(set(once)) == len(once)


def test_a_class_gets_as_many_turns_of_the_replay_as_are_asked_for():
    batches = plan(select([0], frequency={4: 3}), LABELS, batch_size=10, replay=6)
    for batch in islice(batches, 4):
        assert LABELS[batch[10:]].tolist() == [1, 2, 3, 4, 4, 4]


IMAGES = torch.arange(50 * 3 * 9 * 7).view(50, 3, 9, 7).to(torch.uint8)
WHOLE = ImageTensors(IMAGES, torch.arange(50))
FLIP, SHIFT = v2.RandomHorizontalFlip(), v2.RandomAffine(0, (0.2, 0.2))


def test_each_image_is_augmented_by_itself():
    images, labels = Augmented(WHOLE, FLIP, seed=0).__getitems__((0, list(range(50))))
    same = (images == IMAGES).flatten(1).all(1)
    mirrored = (images == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40
    assert labels.tolist() == list(range(50))


def test_an_augmentation_depends_on_seed_rank_and_place_alone():
    def drawn(seed, rank, number):
        return Augmented(WHOLE, SHIFT, seed, rank).__getitems__((number, list(range(50))))[0]

    places = [(0, 0, 7), (1, 0, 7), (0, 1, 7), (0, 0, 8)]
    first = [drawn(*place) for place in places]
    torch.rand(3)
    assert torch.equal(drawn(*places[0]), first[0])
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_all_generators_are_seeded_by_the_place_alone():
    def draw(*place):
        seed_generators(*place)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    places = [(0, 0, 7), (0, 0, 7, 0), (0, 7, 0), (1, 0, 7)]
    drawn = [draw(*place) for place in places]
    assert [draw(*place) for place in places] == drawn
    assert all(len(set(numbers)) == len(places) for numbers in zip(*drawn, strict=True))
