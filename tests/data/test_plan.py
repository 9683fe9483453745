import hashlib
import math
import multiprocessing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import RandomSampler
from torchvision.transforms import v2

from lora_mnist.data import MNIST, ImageDataset, Images, ImageSets
from lora_mnist.data.plan import ImageDataModule, Plan, select
from lora_mnist.errors import UserError

DIGITS = [str(digit) for digit in range(10)]


def plan_of(target, labels, **sizes):
    return Plan(select(labels, DIGITS, target), labels, **sizes)


@pytest.mark.parametrize(
    ("target", "expected"), [(3, "85c412dbd56d934d"), ([3, 5], "72b57f002aaa4083")]
)
def test_images_come_in_the_recorded_order(target, expected):
    """Recorded once: whoever trains with a seed may rely on it."""
    _, labels = MNIST("MNIST", ROOT / "data").load(train=True)
    plan = plan_of(target, labels, replay=90, seed=1, processes=2)
    digest = hashlib.sha256()
    for batch in islice(plan.batches(), 30):
        digest.update(bytes(str(batch), "ascii"))
    assert digest.hexdigest()[:16] == expected


def test_of_several_classes_the_rarest_is_learnt_as_often_as_the_others():
    labels = torch.tensor([1] * 40 + [2] * 3 + [3] * 9)
    batches = islice(plan_of([1, 2], labels, batch_size=4, replay=2).batches(), 20)
    learnt = [labels[batch[:4]].tolist() for batch in batches]
    assert learnt == [[1, 2, 1, 2]] * 20


@pytest.mark.parametrize(("processes", "batch_size", "size"), [(1, 3, 5), (2, 2, 6)])
def test_plan_orders_each_epoch_as_torchs_sampler_does(processes, batch_size, size):
    """Of an odd number of images two processes draw the first one twice."""
    plan = plan_of(None, torch.zeros(5), batch_size=batch_size, seed=1, processes=processes)
    sampler = RandomSampler(range(5), generator=torch.Generator().manual_seed(1))
    batches = plan.batches()
    assert plan.batches_per_epoch == math.ceil(size / batch_size)
    for _ in range(3):
        order = [*sampler]
        drawn = [index for batch in islice(batches, plan.batches_per_epoch) for index in batch]
        assert drawn == [*order, *order][:size]


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (5, {"batch_size": 2}, [2, 2]),
        (5, {"batch_size": 4, "processes": 2}, [4]),  # 6 with the one that comes twice
        (6, {"batch_size": 4, "processes": 1}, [4, 2]),
        (5, {"batch_size": 1}, [1, 1, 1, 1, 1]),
        (1, {"batch_size": 2}, [1]),
        (5, {"batch_size": 2, "replay": 1}, [3, 3, 2]),
    ],
)
def test_a_last_batch_of_one_image_is_left_out(count, sizes, expected):
    """Batch normalisation refuses it. Each process's share is its batch."""
    plan = plan_of(9, torch.tensor([9] * count + [1, 2]), **sizes)
    assert plan.batches_per_epoch == len(expected)
    batches = plan.batches()
    for _ in range(2):
        assert [len(batch) for batch in islice(batches, len(expected))] == expected


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_plan_replays_all_of_a_class_before_it_repeats(counts, count):
    count = min(count, sum(counts) // 2)
    others = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.cat([torch.full((60,), 9), others])
    sizes = {"batch_size": 2, "replay": 2 * count}
    drawn = []
    both = (plan_of(9, labels, processes=processes, **sizes).batches() for processes in (1, 2))
    for alone, together in islice(zip(*both, strict=True), 30):
        assert alone == together  # each process takes every second of these
        assert set(labels[alone[:2]].tolist()) == {9}
        drawn += alone[2:]
    assert labels[drawn].tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        for k in range(0, len(of_class), size):
            once = of_class[k : k + size]
            assert len(set(once)) == len(once)


def test_select_takes_classes_by_name():
    """A number is the class that is called so, not the one in its place."""
    for target, classes, expected in (
        (["2", 0, 2], DIGITS, [2, 0]),
        (10, ["1", "10", "2"], [1]),
        ("010", ["001", "010", "8"], [1]),
    ):
        selection = select(torch.arange(len(classes)), classes, target)
        assert selection.targets == expected
        assert selection.target_indices.tolist() == sorted(expected)
        others = set(range(len(classes))) - set(expected)
        assert selection.replay_indices.tolist() == sorted(others)


@pytest.mark.parametrize(
    ("target", "sizes", "message"),
    [
        (5, {}, "target=5: expected a class with training images"),
        ("dog", {}, "target=dog: no class is called dog; there are 0, 1, "),
        (["weakest", 4], {}, r"target=\[weakest,4\]: expected weakest alone"),
        (True, {}, "target=true: no class is called true; .* in quotes"),
        ([10], {}, r"target=\[10\]: no class is called 10; .* stands in quotes: 'target=\"010\"'"),
        (9, {"replay": 4}, "replay=4: expected at most 3"),
        (9, {"replay": 3, "processes": 2}, "replay=3: expected a multiple of 2 processes"),
    ],
)
def test_plan_refuses_what_cannot_be_planned(target, sizes, message):
    with pytest.raises((UserError, ValueError), match=f"^{message}"):
        plan_of(target, torch.tensor([9, 9, 1, 2, 3]), **sizes)


ON_CPU = SimpleNamespace(root_device=torch.device("cpu"))


def read_number(path, augment):
    """An image of one pixel, from a file of that name."""
    image = torch.tensor([[[int(path.name)]]], dtype=torch.uint8)
    return augment(image) if augment else image


def numbered(count):
    """Images of one pixel that are their own numbers."""
    labels = torch.zeros(count, dtype=torch.int64)
    paths = [Path(str(number)) for number in range(count)]
    return Images(paths, labels, read=read_number, digests=torch.arange(count))


def data_of(trainer=None, val=0, augment=None, num_workers=0):
    """93 images to learn in batches of ten."""
    dataset = ImageDataset("toy", ["cat"], 1, eval_batch_size=2, num_workers=num_workers)
    images = ImageSets(numbered(93), numbered(val), numbered(1), {}, {})
    processes = trainer.world_size if trainer else 1
    labels = images.train.labels
    plan = Plan(select(labels, dataset.classes, None), labels, seed=1, processes=processes)
    data = ImageDataModule(dataset, images, plan, augment)
    data.trainer = trainer
    return data


def seen(batches):
    """The numbers of the images in each batch."""
    return [images.flatten().tolist() for images, _ in batches]


def test_data_module_shares_training_and_validation_among_processes():
    """Each image of a batch is in one of them; in training, of an odd number one is drawn twice."""
    shares, validated, drawn = [], [], set()
    for rank in (0, 1):
        place = {"global_rank": rank, "world_size": 2, "current_epoch": 0, "strategy": ON_CPU}
        limits = {"max_steps": -1, "max_epochs": 1}
        trainer = SimpleNamespace(**place, **limits, overfit_batches=0)
        data = data_of(trainer, val=9)
        shares.append(seen(data.train_dataloader()))
        validated.append(seen(data.val_dataloader()))
    assert validated == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7]]]
    for whole, first, second in zip(islice(data.plan.batches(), 10), *shares, strict=True):
        assert (first, second) == (whole[::2], whole[1::2])
        assert len(first) == len(second)
        drawn |= {*whole}
    assert len(drawn) == 93
    assert data_of(trainer).val_dataloader() == []  # Lightning's word for no validation


def test_workers_read_for_all_validations_of_a_training_and_end_with_it(tmp_path):
    class Net(LightningModule):
        def on_train_start(self):
            self.by_validation = []

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0].flatten(1)).sum()

        def validation_step(self, batch, batch_idx):
            pids = {process.pid for process in multiprocessing.active_children()}
            self.by_validation.append(pids)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, data = Net(), data_of(None, val=2, num_workers=1)
    module.layer = torch.nn.Linear(1, 1)
    data.dataset.normalise_by(0, 1)
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = {"max_steps": 4, "val_check_interval": 2, "num_sanity_val_steps": 0}
    options |= {"default_root_dir": tmp_path, "accelerator": "cpu"}
    trainer = Trainer(**options, **dict.fromkeys(parts, False))
    trainer.fit(module, datamodule=data)
    first, second = module.by_validation
    assert first == second
    assert len(first) == 2  # one reads for the training
    assert not multiprocessing.active_children()


def test_planned_batches_go_on_at_the_place_that_was_saved():
    """In the epoch that Lightning names; with overfit_batches each epoch is the first one."""
    trainer = SimpleNamespace(
        **{"global_rank": 0, "world_size": 1, "current_epoch": 1},
        strategy=ON_CPU,
        **{"overfit_batches": 0, "max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2},
    )
    data = data_of(trainer)
    plan = list(islice(data.plan.batches(), 40))
    cut, goes_on = data.train_dataloader(), data.train_dataloader()
    assert seen(islice(cut, 3)) == plan[10:13]
    goes_on.load_state_dict(cut.state_dict())
    assert seen(goes_on) == plan[13:20]
    trainer.current_epoch = 2
    assert seen(islice(goes_on, 2)) == plan[20:22]  # Lightning ends an epoch at its limit
    trainer.current_epoch = 3
    assert seen(goes_on) == plan[30:]
    trainer.overfit_batches = 4
    assert seen(goes_on) == seen(goes_on) == plan[:10]
    for max_steps, max_epochs, length in ((-1, 3, 10), (7, 3, 10), (7, -1, 14), (-1, -1, 10)):
        trainer.max_steps, trainer.max_epochs = max_steps, max_epochs
        assert len(goes_on) == length


def test_an_evaluation_draws_no_random_number():
    """A training would depend on what is evaluated before it, and how often it is validated."""
    data = data_of(SimpleNamespace(global_rank=0, world_size=1, strategy=ON_CPU), val=9)
    data.dataset.normalise_by(0, 1)
    state = torch.get_rng_state()
    assert len(seen(data.val_dataloader())) == 5
    assert len(seen(data.dataset.batches(data.images.val))) == 5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_module_augments_each_image_by_itself(workers, monkeypatch):
    """Some are inverted; which ones, differs from batch to batch, and follows from the seed.

    The workers of several processes, which have one seed, draw other numbers in each of them.
    """

    def augmented(seed, rank=0):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        one = SimpleNamespace(global_rank=0, world_size=1, strategy=ON_CPU)
        data = data_of(one, augment=v2.RandomInvert(), num_workers=workers)
        torch.manual_seed(seed)
        return seen(data.read(islice(data.plan.batches(), 4)))

    first, patterns = augmented(0), set()
    plan = data_of().plan
    for batch, original in zip(first, plan.batches(), strict=False):
        is_inverted = [new != old for new, old in zip(batch, original, strict=True)]
        expected = zip(original, is_inverted, strict=True)
        assert batch == [255 - number if flag else number for number, flag in expected]
        patterns.add(tuple(is_inverted))
    assert len(patterns) == 4
    assert augmented(0) == first != augmented(1)
    if workers:
        assert augmented(0, rank=1) != first
