import hashlib
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from composed import composed
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.command import Run
from lora_mnist.data import MNIST
from lora_mnist.data.plan import Plan, select
from lora_mnist.progress import Clock
from lora_mnist.recipe import choose_target
from lora_mnist.session import Session

DIGITS = [str(digit) for digit in range(10)]


def plan_of(target, labels, **sizes):
    return Plan(select(labels, DIGITS, target), labels, **sizes)


# (target, replay, seed, rank, processes): SHA-256 of the first thirty batches. Recorded
# once: whoever trains with a seed may rely on its batches.
RECORDED = {
    ("null", 0, 0, 0, 1): "1180ff0c08e71c17",
    ("null", 0, "null", 0, 1): "1af03cfeab3d9690",
    ("[3,5]", 90, 0, 1, 2): "d6bfb3157c9f6064",
}


MNIST_DIGITS = MNIST(data_dir=ROOT / "data")


@pytest.mark.parametrize("way", RECORDED, ids=str)
def test_images_come_in_the_recorded_order(way):
    target, replay, seed, rank, processes = way
    options = (f"target={target}", f"batches.replay={replay}", f"batches.seed={seed}")
    cfg = composed("train", "stage=lora", *options)
    classifier = SimpleNamespace(dataset=MNIST_DIGITS, classes=DIGITS)
    trainer = SimpleNamespace(global_rank=rank, world_size=processes)
    images = MNIST_DIGITS.sets
    session = Session(cfg, Run(ROOT), trainer, classifier, images, None, Clock())
    selection, _ = choose_target(session)
    torch.manual_seed(3)
    data = session.data(selection)
    data.trainer = trainer
    digest = hashlib.sha256()
    for images, labels in data.read(islice(data.plan.batches(), 30)):
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == RECORDED[way]


def test_an_odd_number_of_images_is_shared_out():
    """One is drawn twice, so that both processes take equally many steps."""
    plan = plan_of(None, torch.zeros(7), batch_size=4, processes=2)
    whole = list(islice(plan.batches(), plan.batches_a_pass))
    assert [len(batch[rank::2]) for rank in (0, 1) for batch in whole] == [2, 2, 2, 2]
    assert {i for batch in whole for i in batch} == set(range(7))


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts, count):
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


def test_classes_go_by_number_and_by_name():
    """A name goes before a number."""
    for target, classes, expected in (
        (["2", 0, 2], DIGITS, [2, 0]),
        (10, ["1", "10", "2"], [1]),
        (0, ["1", "10", "2"], [0]),
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
        (9, {"replay": 4}, "replay=4: expected at most 3, the number of training images"),
        (9, {"replay": 3, "processes": 2}, "replay=3: expected a multiple of 2 processes"),
    ],
)
def test_refuses_what_cannot_be_planned(target, sizes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        plan_of(target, torch.tensor([9, 9, 1, 2, 3]), **sizes)
