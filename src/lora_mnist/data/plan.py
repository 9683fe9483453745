"""The plan of a training: which images each step has. It follows from the seed alone."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lora_mnist.data.images import Augment, Batch, Images
from lora_mnist.errors import unknown_class


class Selection(NamedTuple):
    """Which training images are learnt, and which are replayed beside them."""

    targets: list[int]  # the classes to learn; empty where all are learnt, or mistakes
    target_indices: Tensor  # of the images to learn from, int64
    replay_indices: Tensor  # of those that may be replayed, int64


def select(labels: Tensor, classes: Sequence[str], target: Any) -> Selection:
    """The images of a class, or of several, to learn; the others may be replayed.

    Args:
        labels: the class of each training image, int64, shape (N,).
        classes: the names of all classes.
        target: a class by number or by name, or a list of these. Names come first: with the classes
            1, 10 and 2 the target 10 is the class named 10. ``None``: all classes.

    Raises:
        ValueError: if it names no class with training images, or one twice.
    """
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name: number for number, name in enumerate(classes)}
    names = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    targets: list[int] = []
    for name in names if target is not None else ():
        if name is None or isinstance(name, float | bool):  # 1.10 was typed, and read as 1.1
            raise ValueError(
                f"target={name}: expected a class; quote one that looks like a number, true or "
                "null, as in 'target=\"1.10\"'"
            )
        if str(name) not in numbers:
            raise ValueError(unknown_class(target, name, classes))
        targets.append(numbers[str(name)])
    if not names or len(set(targets)) < len(targets):
        raise ValueError(f"target={target}: expected each class once, and at least one")
    is_target = torch.ones_like(labels, dtype=torch.bool)
    if targets:
        is_target = torch.isin(labels, torch.tensor(targets))
    if not is_target.any():
        raise ValueError(f"target={target}: expected a class with training images")
    return Selection(targets, is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0])


def also_learning(selection: Selection, labels: Tensor, first: int) -> Selection:
    """The selection where more images, with these labels, follow from the place ``first`` on.

    They are learnt or replayed by their class, as the others are.
    """
    targets, learnt, replayed = selection
    added = torch.arange(first, first + len(labels))
    is_learnt = torch.full((len(added),), not len(replayed))  # all classes, or those to repair
    if targets:
        is_learnt = torch.isin(labels, torch.tensor(targets))
    learnt = torch.cat([learnt, added[is_learnt]])
    return Selection(targets, learnt, torch.cat([replayed, added[~is_learnt]]))


@dataclass(frozen=True)
class Plan:
    """The batches of a training.

    Attributes:
        selection: the images to learn and those to replay.
        labels: the class of each training image, int64, shape (N,).
        batch_size: images to learn in a batch; a multiple of ``processes``.
        replay: replayed images in a batch; a multiple of ``processes``.
        seed: of the order of both.
        processes: how many processes share each batch. The process ``rank`` takes
            ``batch[rank::processes]``. For equal shares the first images of a pass come once more
            at its end.

    Raises:
        ValueError: if the images cannot be shared out so.
    """

    selection: Selection
    labels: Tensor
    batch_size: int = 10
    replay: int = 0
    seed: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        for key, size, least in (("batch_size", self.batch_size, 1), ("replay", self.replay, 0)):
            if type(size) is not int or size < least:
                raise ValueError(f"{key}={size}: expected an integer >= {least}")
            if size % self.processes:
                raise ValueError(f"{key}={size}: expected a multiple of {self.processes} processes")
        others = len(self.selection.replay_indices)
        if self.replay > others:
            raise ValueError(
                f"replay={self.replay}: expected at most {others}, the number of training images "
                "that are not learnt"
            )

    @property
    def batches_a_pass(self) -> int:
        """How many batches take each image to learn once."""
        return math.ceil(self._images_a_pass / self.batch_size)

    @property
    def _images_a_pass(self) -> int:
        learnt = len(self.selection.target_indices)
        return math.ceil(learnt / self.processes) * self.processes

    def batches(self) -> Iterator[list[int]]:
        """Yield batch after batch without end: indices of images to learn, then replayed ones.

        Each pass takes every image to learn once, in the order of a plain
        ``DataLoader(shuffle=True)`` whose sampler has the seed ``seed``. Its last batch may be
        smaller.
        """
        generator = torch.Generator().manual_seed(self.seed)
        replayed = self._replayed()
        learnt = self.selection.target_indices
        while True:
            order = learnt[torch.randperm(len(learnt), generator=generator)]
            # torch's RandomSampler shuffles once more when an epoch's images are used up.
            torch.randperm(len(learnt), generator=generator)
            order = order.repeat(self.processes)[: self._images_a_pass]
            for indices in torch.split(order, self.batch_size):
                yield indices.tolist() + list(islice(replayed, self.replay))

    def _replayed(self) -> Iterator[int]:
        """Indices of replayed images, without end: one of each class in turn.

        Each class comes in a random order until all its images were drawn, then in another.
        """
        generator = torch.Generator().manual_seed(self.seed)
        others = self.selection.replay_indices
        labels = self.labels[others]
        members = {int(c): others[labels == c] for c in torch.unique(labels)}
        orders: dict[int, list[int]] = {c: [] for c in members}
        while True:
            for c, order in orders.items():
                if not order:
                    shuffled = torch.randperm(len(members[c]), generator=generator)
                    order += members[c][shuffled].tolist()
                yield order.pop(0)


def seed_generators(seed: int, *place: int) -> None:
    """Seed the generators of Python, NumPy and torch for one place in a training.

    What is drawn there depends on ``seed`` and ``place`` alone, whatever was drawn before. Places
    of different lengths are different places.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    number = int(sequence.generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # the same numbers, a thousand times as fast
        torch.default_generator.manual_seed(number)


class Augmented(Images):
    """Training images for a DataLoader, with ``augment`` applied to each.

    A batch is ``(number, indices)``. Its random numbers depend on ``seed``, ``rank`` and the
    number, which is its place in the plan: they are the same in a worker, and in a resumed run.
    """

    def __init__(self, images: Images, augment: Augment, seed: int, rank: int = 0) -> None:
        self.images, self.augment = images, augment
        self.seed, self.rank = seed, rank
        self.labels, self.read = images.labels, images.read

    def __getitems__(self, batch: Any) -> Batch:
        number, indices = batch
        seed_generators(self.seed, self.rank, number)
        return self.images.take(indices, self.augment)
