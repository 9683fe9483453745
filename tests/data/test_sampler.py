import hashlib
from itertools import chain, islice, repeat
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from lora_mnist.data import ImageDataModule, ImageTensors, MNISTDataModule
from lora_mnist.data.images import Augmented
from lora_mnist.data.sampler import Selection, TrainingLoader

LABELS = torch.arange(203) % 5
INDICES = ImageTensors(torch.arange(203), LABELS)


def trainer_of(rank, processes):
    """A Trainer's place among several processes, without the processes."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    length = {"num_training_batches": 10**9, "max_steps": -1, "accumulate_grad_batches": 1}
    place = {"global_rank": rank, "world_size": processes, "strategy": strategy}
    return SimpleNamespace(**place, **length, overfit_batches=0.0)


def toy_loader(
    targets, batch_size=10, replay=6, images=INDICES, frequency=None, num_workers=0, **options
):
    """A loader of the 203 images, or of ``images``, that learns the classes ``targets``."""
    data = ImageDataModule("toy", [], 1, num_workers=num_workers)
    is_target = torch.isin(images.labels, torch.tensor(targets))
    indices = is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0]
    selection = Selection(targets, *indices, frequency or {})
    sizes = {"batch_size": batch_size, "replay": replay}
    return TrainingLoader(images, selection, data.loader, **sizes, **options)


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
    if processes > 1:
        data.trainer = trainer_of(rank, processes)
    torch.manual_seed(3)
    digest = hashlib.sha256()
    for images, labels in islice(data.train_dataloader(), 30):
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == RECORDED[way]


@given(
    target=st.sampled_from([[0], [1, 4], [0, 1, 2, 3, 4]]),
    processes=st.integers(1, 2),
    limit=st.sampled_from([3, 10**9]),
    cut=st.integers(0, 40),
)
def test_a_loader_goes_on_from_any_place(target, processes, limit, cut):
    replay = 0 if len(target) == 5 else 6

    def loader():
        trainer = trainer_of(processes - 1, processes)
        trainer.num_training_batches = limit
        return toy_loader(target, 10, replay, frequency={4: 2}, trainer=trainer)

    def draw(loader, count):
        """Batches of epoch after epoch."""
        batches = chain.from_iterable(repeat(loader))
        return [images.tolist() for images, _ in islice(batches, count)]

    whole = draw(loader(), cut + 25)
    begun, resumed = loader(), loader()
    draw(begun, cut)
    resumed.load_state_dict(begun.state_dict())
    assert draw(resumed, 25) == whole[cut:]


def test_workers_that_read_ahead_change_nothing():
    def batches(workers):
        loader = toy_loader([0], num_workers=workers)
        drawn = [images for images, _ in islice(loader, 2)]  # given up in the middle
        return [*drawn, *(images for images, _ in loader)]

    assert all(map(torch.equal, batches(0), batches(2)))


def test_an_odd_number_of_images_is_shared_out():
    """One is drawn twice, so that both processes take equally many steps."""
    images = ImageTensors(torch.arange(7), torch.zeros(7))
    shares = []
    for rank in (0, 1):
        loader = toy_loader([0], 4, 0, images, trainer=trainer_of(rank, 2))
        shares.append([drawn.tolist() for drawn, _ in loader])
    assert [len(batch) for share in shares for batch in share] == [2, 2, 2, 2]
    assert {i for share in shares for batch in share for i in batch} == set(range(7))


def test_overfitting_sees_the_same_batches_in_every_epoch():
    trainer = trainer_of(0, 1)
    trainer.overfit_batches = 3
    loader = toy_loader([0], trainer=trainer)
    first, second = ([images for images, _ in loader] for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(("steps", "batches"), [(20, [5, 5, 1, 5, 5, 1, 5, 5]), (-1, [5, 5, 1])])
def test_a_step_of_several_batches_is_whole_where_steps_are_counted(steps, batches):
    """Eleven images are three batches, and a step takes eight."""
    trainer = trainer_of(0, 1)
    trainer.max_steps, trainer.accumulate_grad_batches = steps, 8
    images = ImageTensors(torch.arange(11), torch.zeros(11))
    loader = toy_loader([0], 5, 0, images, trainer=trainer)
    assert len(loader) == len(batches)
    for epoch in (list(loader), list(loader)):
        assert [len(images) for images, _ in epoch] == batches
        for first in range(0, len(batches), 3):  # each image once before it comes again
            drawn = torch.cat([images for images, _ in epoch[first : first + 3]])
            assert len(drawn.unique()) == len(drawn)


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts, count):
    others = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.cat([torch.full((60,), 9), others])
    images = ImageTensors(labels, labels)
    loaders = [
        toy_loader([9], 2, 2 * count, images, trainer=trainer)
        for trainer in (None, trainer_of(0, 2), trainer_of(1, 2))
    ]
    drawn = []
    for whole, *halves in zip(*(next(loader.epochs()) for loader in loaders), strict=True):
        dealt = torch.tensor([half[1:] for half in halves]).t().flatten()
        assert dealt.tolist() == whole[2:]
        drawn += whole[2:]
    assert (labels[drawn]).tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        for k in range(0, len(of_class), size):
            once = of_class[k : k + size]
            assert len(set(once)) == len(once)


def test_a_class_gets_as_many_turns_of_the_replay_as_are_asked_for():
    loader = toy_loader([0], frequency={4: 3})
    for batch in next(loader.epochs())[:4]:
        assert LABELS[batch[10:]].tolist() == [1, 2, 3, 4, 4, 4]


IMAGES = torch.arange(50 * 3 * 9 * 7).view(50, 3, 9, 7).to(torch.uint8)
WHOLE = ImageTensors(IMAGES, torch.arange(50))
FLIP, SHIFT = v2.RandomHorizontalFlip(), v2.RandomAffine(0, (0.2, 0.2))


def test_each_image_is_augmented_by_itself():
    images, labels = Augmented(WHOLE, FLIP).__getitems__(("0", list(range(50))))
    same = (images == IMAGES).flatten(1).all(1)
    mirrored = (images == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40
    assert labels.tolist() == list(range(50))


def test_random_numbers_depend_on_the_name_alone_and_disturb_no_others(monkeypatch):
    for device in (torch.cuda, torch.mps):
        monkeypatch.setattr(device, "manual_seed", lambda _: pytest.fail("a device is reseeded"))
    images, indices = Augmented(WHOLE, SHIFT), list(range(50))
    torch.default_generator.manual_seed(5)
    first, after = images.__getitems__(("0 7 0", indices))[0], torch.rand(3)
    torch.default_generator.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(images.__getitems__(("0 7 0", indices))[0], first)
    assert not torch.equal(images.__getitems__(("0 8 0", indices))[0], first)
