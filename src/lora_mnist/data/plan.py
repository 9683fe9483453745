"""The plan of a training: which images each step has. It follows from the seed alone."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lora_mnist.data.images import Augment, Batch, Images


class Selection(NamedTuple):
    """Which training images are learnt, and which are replayed beside them."""

    targets: list[int]  # the classes to learn; empty where all are learnt, or mistakes
    target_indices: Tensor  # of the images to learn from, int64
    replay_indices: Tensor  # of those that may be replayed, int64
    #: Turns of a class among the replayed images; classes not listed get one.
    replay_frequency: Mapping[int, int] = {}


def plan(
    selection: Selection,
    labels: Tensor,
    *,
    batch_size: int,
    replay: int = 0,
    seed: int = 0,
    processes: int = 1,
) -> Iterator[list[int]]:
    """Yield the batches of a training without end: indices of images to learn, then replayed ones.

    Each pass takes every image to learn once, in the order of a plain ``DataLoader(shuffle=True)``
    whose sampler has the seed ``seed``. Its last batch may be smaller.

    Args:
        selection: the images to learn and those to replay.
        labels: the class of each training image, int64, shape (N,).
        batch_size: images to learn in a batch; a multiple of ``processes``.
        replay: replayed images in a batch; a multiple of ``processes``.
        seed: of the order of both.
        processes: how many processes share each batch. The process ``rank`` takes
            ``batch[rank::processes]``. For equal shares the first images of a pass come once more
            at its end.
    """
    generator = torch.Generator().manual_seed(seed)
    replayed = _replayed(selection, labels, seed)
    learnt = selection.target_indices
    images_a_pass = math.ceil(len(learnt) / processes) * processes
    while True:
        order = learnt[torch.randperm(len(learnt), generator=generator)]
        # torch's RandomSampler shuffles once more when an epoch's images are used up.
        torch.randperm(len(learnt), generator=generator)
        order = order.repeat(processes)[:images_a_pass]
        for indices in torch.split(order, batch_size):
            yield indices.tolist() + list(islice(replayed, replay))


def batches_a_pass(selection: Selection, batch_size: int, processes: int = 1) -> int:
    """How many batches of :func:`plan` take each image to learn once."""
    images = math.ceil(len(selection.target_indices) / processes) * processes
    return math.ceil(images / batch_size)


def _replayed(selection: Selection, labels: Tensor, seed: int) -> Iterator[int]:
    """Indices of replayed images, without end: one of each class in turn.

    Each class comes in a random order until all its images were drawn, then in another.
    """
    generator = torch.Generator().manual_seed(seed)
    others, frequency = selection.replay_indices, selection.replay_frequency
    members = {int(c): others[labels[others] == c] for c in torch.unique(labels[others])}
    max_turns = max([1, *frequency.values()])
    orders: dict[int, list[int]] = {c: [] for c in members}
    for turn in count():
        for c, order in orders.items():
            if turn % max_turns >= frequency.get(c, 1):
                continue  # this class has had its turns of this round
            if not order:
                shuffled = torch.randperm(len(members[c]), generator=generator)
                order += members[c][shuffled].tolist()
            yield order.pop(0)


def seed_generators(seed: int, *place: int, device: str = "cpu") -> None:
    """Seed the generators of Python, NumPy, torch and its ``device`` for one place in a training.

    What is drawn there depends on ``seed`` and ``place`` alone, whatever was drawn before. Places
    of different lengths are different places.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    number = int(sequence.generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    # torch.manual_seed goes through every kind of device, which takes a hundred times as long.
    torch.default_generator.manual_seed(number)
    if device != "cpu":
        getattr(torch, device).manual_seed(number)


class Augmented(Images):
    """Training images for a DataLoader, with ``augment`` applied to each.

    A batch is ``(number, indices)``. Its random numbers depend on ``seed``, ``rank`` and the
    number, which is its place in the plan: they are the same in a worker, and in a resumed run.
    """

    def __init__(self, images: Images, augment: Augment, seed: int, rank: int = 0) -> None:
        self.images, self.augment = images, augment
        self.seed, self.rank = seed, rank
        self.labels = images.labels

    def __getitems__(self, batch: Any) -> Batch:
        number, indices = batch
        seed_generators(self.seed, self.rank, number)
        return self.images.take(indices, self.augment)


def is_one_epoch(trainer: Trainer) -> bool:
    """Whether Lightning runs the whole training as one epoch: if only ``max_steps`` ends it.

    Else an epoch of Lightning's is one pass over the images to learn.
    """
    return trainer.max_steps != -1 and trainer.max_epochs == -1


class TrainingLoader:
    """The batches of the plan from the Trainer's step on, epoch by epoch of Lightning's.

    Which batch comes first follows from ``trainer.global_step`` and nothing else, so that a resumed
    run goes on at its place. This class is no ``DataLoader``, so that Lightning leaves the order as
    it is.

    Args:
        make_plan: gives the plan from its first batch on.
        read: gives the images of batches of the plan; its second argument is the number of the
            first of them.
        batches_a_pass: of the plan.
        trainer: the Trainer that takes the batches.
    """

    def __init__(
        self,
        make_plan: Callable[[], Iterator[list[int]]],
        read: Callable[[Iterable[list[int]], int], Iterable[Batch]],
        batches_a_pass: int,
        trainer: Trainer,
    ) -> None:
        self.make_plan, self.read = make_plan, read
        self.batches_a_pass, self.trainer = batches_a_pass, trainer
        self._plan: Iterator[list[int]] = iter(())
        self._next: int | None = None  # the number of the next batch of _plan

    def __len__(self) -> int:
        """All batches of an epoch, also of one that is resumed."""
        if is_one_epoch(self.trainer):
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return self.batches_a_pass

    def __iter__(self) -> Iterator[Batch]:
        trainer = self.trainer
        batches = int(trainer.num_training_batches)  # Lightning may have been told to take fewer
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        epoch, step = divmod(trainer.global_step, steps)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            epoch = 0  # each epoch has the first one's batches
        first = epoch * batches + step * trainer.accumulate_grad_batches
        end = (epoch + 1) * batches
        if first != self._next:
            self._plan = islice(self.make_plan(), first, None)
        self._next = end
        yield from self.read(islice(self._plan, end - first), first)
