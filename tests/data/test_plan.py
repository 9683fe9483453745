import hashlib
import math
from itertools import islice

import pytest
import torch
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from lora_mnist.data import MNIST
from lora_mnist.data.plan import Plan
from lora_mnist.training.target import select_images

DIGITS = [str(digit) for digit in range(10)]


def make_plan(target, labels, **sizes):
    return Plan(select_images(labels, DIGITS, target), labels, **sizes)


@pytest.mark.parametrize(
    ("target", "expected"), [(3, "85c412dbd56d934d"), ([3, 5], "72b57f002aaa4083")]
)
def test_images_come_in_the_recorded_order(target, expected):
    """Recorded once: whoever trains with a seed may rely on it."""
    _, labels = MNIST("MNIST", ROOT / "data").load(train=True)
    plan = make_plan(target, labels, replay=90, seed=1, processes=2)
    digest = hashlib.sha256()
    for batch in islice(plan.batches(), 30):
        digest.update(bytes(str(batch), "ascii"))
    assert digest.hexdigest()[:16] == expected


def test_the_rarest_of_several_classes_is_sampled_as_often_as_the_others():
    labels = torch.tensor([1] * 40 + [2] * 3 + [3] * 9)
    batches = islice(make_plan([1, 2], labels, batch_size=4, replay=2).batches(), 20)
    train_digests = [labels[batch[:4]].tolist() for batch in batches]
    assert train_digests == [[1, 2, 1, 2]] * 20


@pytest.mark.parametrize(("processes", "batch_size", "size"), [(1, 3, 5), (2, 2, 6)])
def test_plan_orders_each_epoch_as_torchs_sampler_does(processes, batch_size, size):
    """Of an odd number of images two processes draw the first one twice."""
    plan = make_plan(None, torch.zeros(5), batch_size=batch_size, seed=1, processes=processes)
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
def test_a_last_batch_of_one_image_is_dropped(count, sizes, expected):
    """Batch normalization refuses it. Each process's share is its batch."""
    plan = make_plan(9, torch.tensor([9] * count + [1, 2]), **sizes)
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
    both = (make_plan(9, labels, processes=processes, **sizes).batches() for processes in (1, 2))
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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"replay": 4}, "replay=4: expected at most 3"),
        ({"replay": 3, "processes": 2}, "replay=3: expected a multiple of 2 processes"),
    ],
)
def test_plan_refuses_what_cannot_be_planned(sizes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_plan(9, torch.tensor([9, 9, 1, 2, 3]), **sizes)
