"""The plan of a training: its batches, as the seed gives them, and how Lightning reads them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lora_mnist.choice import WEAK
from lora_mnist.data.images import Augment, Batch, ImageDataset, ImageSets
from lora_mnist.errors import UserError, as_value, nearest_to, require


class Selection(NamedTuple):
    """Which training images are learnt, and which are replayed beside them."""

    targets: list[int]  # the classes to learn; empty where all are learnt, or mistakes
    target_indices: Tensor  # of the images to learn from, int64
    replay_indices: Tensor  # of those that may be replayed, int64


class Mix(NamedTuple):
    """What a batch of a repair has with ``auto``, and its loss."""

    batch_size: int  # images to learn
    replay: int  # images of the other classes
    target_weight: float  # the share of the loss of those to learn


def mix_of(num_classes: int, num_targets: int) -> Mix:
    """The mix that follows the share of the classes to learn; mistakes have 10, 90 and a quarter.

    Several classes that are a third of all would get less from a tenth of a batch than nature
    gives them: docs/experiments.md.
    """
    share = num_targets / num_classes
    batch_size = max(10, round(100 * share))
    return Mix(batch_size, 100 - batch_size, max(0.25, share))


def select(labels: Tensor, classes: Sequence[str], target: Any) -> Selection:
    """The images of a class, or of several, to learn; the others may be replayed."""
    if target is None:
        return Selection([], torch.arange(len(labels)), torch.arange(0))
    targets = numbers_of(classes, target)
    is_target = torch.isin(labels, torch.tensor(targets, dtype=torch.int64))
    if not is_target.any():
        raise UserError(f"target={as_value(target)}: expected a class with training images")
    replayed = (~is_target).nonzero()[:, 0]
    return Selection(targets, is_target.nonzero()[:, 0], replayed)


def numbers_of(classes: Sequence[str], target: Any) -> list[int]:
    """The numbers of the classes that ``target`` names, each once; 9 names the class called 9."""
    targets: list[int] = []
    for name in [target] if isinstance(target, str | int | float) else target:
        # YAML reads 1.10 as 1.1, and 010 as 8.
        if isinstance(name, float | bool) or str(name) not in classes:
            if name in WEAK:
                raise UserError(f"target={as_value(target)}: expected {name} alone, in no list")
            problem = nearest_to(str(name), classes) or f"; there are {', '.join(classes[:12])}"
            if not isinstance(name, str):
                problem += "; a name like a number, or true, stands in quotes: 'target=\"010\"'"
            raise UserError(
                f"target={as_value(target)}: no class is called {as_value(name)}{problem}; "
                "expected a class by name, a list, weakest, weak, or null for all"
            )
        targets.append(classes.index(str(name)))
    return list(dict.fromkeys(targets))


@dataclass(frozen=True)
class Plan:
    """The batches of a training, of which the process ``rank`` takes ``batch[rank::processes]``."""

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
        expected = f"at most {others}, the training images that are not learnt"
        require(self.replay <= others, "replay", self.replay, expected)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches take each image to learn once."""
        return math.ceil(self._images_per_epoch / self.batch_size)

    @property
    def _images_per_epoch(self) -> int:
        # Each process has as many: some images come twice.
        of_each = math.ceil(len(self.selection.target_indices) / self.processes)
        size = self.batch_size // self.processes
        if of_each > size > 1 and of_each % size == 1 and not self.replay:
            of_each -= 1  # batch normalisation refuses a last batch of one image
        return of_each * self.processes

    def batches(self) -> Iterator[list[int]]:
        """Indices without end: to learn, as ``DataLoader(shuffle=True)`` draws, then to replay."""
        generator = torch.Generator().manual_seed(self.seed)
        replayed = self._in_turn(self.selection.replay_indices)
        indices = self.selection.target_indices
        if len(self.selection.targets) > 1:  # the rarest as often as the others
            in_turn = self._in_turn(indices)
            while True:
                yield list(islice(in_turn, self.batch_size)) + list(islice(replayed, self.replay))
        while True:
            order = indices[torch.randperm(len(indices), generator=generator)]
            # torch's RandomSampler shuffles once more when an epoch's images are used up.
            torch.randperm(len(indices), generator=generator)
            order = order.repeat(self.processes)[: self._images_per_epoch]
            for batch in torch.split(order, self.batch_size):
                yield batch.tolist() + list(islice(replayed, self.replay))

    def _in_turn(self, indices: Tensor) -> Iterator[int]:
        """Indices without end: one of each class in turn, in random order."""
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


class ImageDataModule(LightningDataModule):
    """Feeds a training by its plan, and its validation; images are uint8 up to the device."""

    def __init__(
        self,
        dataset: ImageDataset,
        images: ImageSets,
        plan: Plan,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.dataset, self.images = dataset, images
        self.plan, self.augment = plan, augment

    @property
    def learnt(self) -> Tensor:
        """The digests of all images that a batch may have, sorted."""
        _, indices, others = self.plan.selection
        if self.plan.replay:
            indices = torch.cat([indices, others])
        return self.images.train.digests[indices].sort().values

    def read(self, batches: Iterable[list[int]]) -> DataLoader[Batch]:
        """This process's share of ``batches`` of the plan."""
        assert self.trainer is not None
        rank, processes = self.trainer.global_rank, self.plan.processes
        return self.dataset.loader(
            replace(self.images.train, augment=self.augment),
            self.trainer.strategy.root_device,
            batch_sampler=(batch[rank::processes] for batch in batches),
            generator=None,  # torch's own: each epoch, and each worker, has other numbers
            worker_init_fn=pl_worker_init_function,
        )

    def train_dataloader(self) -> "PlannedBatches":
        """The batches of the plan."""
        assert self.trainer is not None
        return PlannedBatches(self, self.trainer)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """This process's share of the validation images; nothing where there are none."""
        if not len(self.images.val):
            return []
        assert self.trainer is not None
        places = torch.arange(self.trainer.global_rank, len(self.images.val), self.plan.processes)
        share = self.images.val.subset(places)
        device, size = self.trainer.strategy.root_device, self.dataset.eval_batch_size
        return self.dataset.loader(share, device, batch_size=size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is."""
        images, labels = batch
        return self.dataset.normalise(images), labels


class PlannedBatches:
    """The batches of the plan; Lightning saves its place in an epoch, and restores it."""

    # It is no DataLoader, whose order Lightning would change. Each epoch begins where the one
    # before would end, as a DataLoader's order does, also with trainer.limit_train_batches.

    def __init__(self, data: ImageDataModule, trainer: Trainer) -> None:
        self.data, self.trainer = data, trainer
        self._epoch, self._place = 0, 0  # how many batches of the epoch have been given
        self._batches, self._next = data.plan.batches(), 0  # kept from epoch to epoch

    def __len__(self) -> int:
        """The batches of a whole epoch, also where a part of it is done."""
        trainer = self.trainer
        if trainer.max_steps != -1 and trainer.max_epochs == -1:  # one epoch is all
            return trainer.max_steps * trainer.accumulate_grad_batches
        return self.data.plan.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch, count = self.trainer.current_epoch, len(self)
        if epoch != self._epoch:
            self._epoch, self._place = epoch, 0
        first = self._place
        if not self.trainer.overfit_batches:  # type: ignore[attr-defined]  # the first epoch again
            first += epoch * count
        for batch in self.data.read(islice(self._from(first), count - self._place)):
            self._place = (self._place + 1) % count  # 0 after the last one
            yield batch

    def _from(self, first: int) -> Iterator[list[int]]:
        """The batches of the plan from the one with this number on."""
        if self._next > first:
            self._batches, self._next = self.data.plan.batches(), 0
        for batch in self._batches:
            self._next += 1
            if self._next > first:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._place = state["epoch"], state["place"]
