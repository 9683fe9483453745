"""The plan of a training: its images and its batches, which follow from the seed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lora_mnist.errors import require


class Selection(NamedTuple):
    """The training images to learn, and those to replay beside them."""

    targets: list[int]  # the classes to learn; empty for all classes, or mistakes
    learn_indices: Tensor  # of the images to learn from, int64
    replay_indices: Tensor  # of images to replay, int64


@dataclass(frozen=True)
class Plan:
    """The batches of a training; each of ``processes`` takes its share of a batch."""

    selection: Selection
    labels: Tensor  # the class of each training image, int64, shape (N,)
    batch_size: int = 10  # images to learn in a batch
    replay: int = 0  # replayed images in a batch
    seed: int = 0  # of the order of both
    processes: int = 1

    def __post_init__(self) -> None:
        for key, size in (("batch_size", self.batch_size), ("replay", self.replay)):
            is_multiple = size % self.processes == 0
            require(is_multiple, key, size, f"a multiple of {self.processes} processes")
        others = len(self.selection.replay_indices)
        expected = f"at most {others}, the training images of other classes"
        require(self.replay <= others, "replay", self.replay, expected)

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches that cover the images to learn once."""
        return math.ceil(self._images_per_epoch / self.batch_size)

    @property
    def _images_per_epoch(self) -> int:
        # Each process has as many: some images come twice.
        of_each = math.ceil(len(self.selection.learn_indices) / self.processes)
        size = self.batch_size // self.processes
        if of_each > size > 1 and of_each % size == 1 and not self.replay:
            of_each -= 1  # batch normalization refuses a last batch of one image
        return of_each * self.processes

    def batches(self) -> Iterator[list[int]]:
        """Yield batches without end: shuffled indices to learn, then indices to replay."""
        generator = torch.Generator().manual_seed(self.seed)
        replayed = self._yield_in_turn(self.selection.replay_indices)
        indices = self.selection.learn_indices
        if len(self.selection.targets) > 1:  # the rarest as often as the others
            in_turn = self._yield_in_turn(indices)
            while True:
                yield list(islice(in_turn, self.batch_size)) + list(islice(replayed, self.replay))
        while True:
            order = indices[torch.randperm(len(indices), generator=generator)]
            # torch's RandomSampler shuffles once more when an epoch's images are used up.
            torch.randperm(len(indices), generator=generator)
            order = order.repeat(self.processes)[: self._images_per_epoch]
            for batch in torch.split(order, self.batch_size):
                yield batch.tolist() + list(islice(replayed, self.replay))

    def _yield_in_turn(self, indices: Tensor) -> Iterator[int]:
        """Yield indices without end: one of each class in turn, in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        labels = self.labels[indices]
        members = {int(c): indices[labels == c] for c in torch.unique(labels)}
        orders: dict[int, list[int]] = {c: [] for c in members}
        while True:
            for c, order in orders.items():
                if not order:
                    shuffled = torch.randperm(len(members[c]), generator=generator)
                    order += members[c][shuffled].tolist()
                yield order.pop(0)
