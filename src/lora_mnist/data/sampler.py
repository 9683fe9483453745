"""The training images of each step: their order, and the replay of other classes."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lora_mnist.data.images import Augment, Augmented, Batch, Images


class Selection(NamedTuple):
    """Which training images are learnt, and which are replayed beside them."""

    targets: list[int]  # the classes to learn; empty where all are learnt, or mistakes
    target_indices: Tensor  # of the images to learn from, int64
    replay_indices: Tensor  # of those that may be replayed, int64


class TrainingLoader:
    """The batches of one epoch after another: images to learn from, then replayed ones.

    An epoch takes each image to learn from once, in the order of a plain
    ``DataLoader(shuffle=True)`` whose sampler has the seed ``seed``. If steps are counted
    (``max_steps``) and take several batches each (``accumulate_grad_batches``), the epoch repeats
    images until its last step is whole: Lightning would cut that step short. The replayed images
    are one endless stream, with the same seed, that takes their classes in turn; each class comes
    in a random order until all its images were drawn, then in another. Several processes share each
    batch: together they see what one process would see. Where the images cannot be shared out
    equally, the first ones of the order come once more.

    ``load`` makes torch's DataLoader of images and a ``batch_sampler``. Batch size and replay are
    those of all processes together.

    This class is no ``DataLoader``, so that Lightning leaves its order as it is. Each iteration is
    the next epoch. It can start in the middle of one, and counts the batches taken from it, since
    workers read ahead.
    """

    def __init__(
        self,
        images: Images,
        selection: Selection,
        load: Callable[..., Iterable[Batch]],
        *,
        batch_size: int,
        replay: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.images, self.selection, self.load = images, selection, load
        self.replay, self.seed = replay, seed
        self.augment = augment
        self.trainer = trainer
        self.rank = trainer.global_rank if trainer else 0
        self.processes = trainer.world_size if trainer else 1
        self.batch_size = batch_size // self.processes  # of this process
        self.epoch = self.batch = 0  # the current epoch, and the batches taken from it
        self.batches: int | None = None  # all batches of the current epoch, once it has begun
        self._epochs: Iterator[list[list[int]]] | None = None

    def __len__(self) -> int:
        images = math.ceil(len(self.selection.target_indices) / self.processes)
        batches = math.ceil(images / self.batch_size)
        if self.trainer and self.trainer.max_steps > 0:
            step = self.trainer.accumulate_grad_batches
            return math.ceil(batches / step) * step
        return batches

    def __iter__(self) -> Iterator[Batch]:
        if self._epochs is None:
            self._epochs = islice(self.epochs(), self.epoch, None)
        else:
            self.epoch, self.batch = self.epoch + 1, 0
        images, batches = self.images, list[Any](next(self._epochs))
        self.batches, batches = len(batches), batches[self.batch :]
        if self.augment is not None:
            images = Augmented(images, self.augment)
            # The batch's name seeds its augmentation.
            epoch = f"{self.seed} {self.rank} {self.epoch}"
            batches = [(f"{epoch} {n}", batch) for n, batch in enumerate(batches, self.batch)]
        for batch in self.load(images, batch_sampler=batches):
            self.batch += 1
            yield batch

    def epochs(self) -> Iterator[list[list[int]]]:
        """Epoch after epoch, without end: the indices in each batch, this process's share."""
        generator = torch.Generator().manual_seed(self.seed)
        replayed = self._replayed()
        while True:
            batches: list[list[int]] = []
            batches_an_epoch = len(self)
            if self.trainer:  # Lightning may take fewer
                batches_an_epoch = min(batches_an_epoch, int(self.trainer.num_training_batches))
            while len(batches) < batches_an_epoch:
                learnt = self.selection.target_indices
                order = learnt[torch.randperm(len(learnt), generator=generator)]
                # torch's RandomSampler shuffles once more when an epoch's images are used up.
                torch.randperm(len(learnt), generator=generator)
                total = math.ceil(len(order) / self.processes) * self.processes
                share = order.repeat(self.processes)[:total][self.rank :: self.processes]
                missing = batches_an_epoch - len(batches)
                for indices in torch.split(share, self.batch_size)[:missing]:
                    replays = [next(replayed) for _ in range(self.replay)]
                    batches.append(indices.tolist() + replays[self.rank :: self.processes])
            yield batches
            while self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
                yield batches

    def _replayed(self) -> Iterator[int]:
        """Indices of replayed images, without end: one of each class in turn."""
        generator = torch.Generator().manual_seed(self.seed)
        others = self.selection.replay_indices
        labels = self.images.labels[others]
        members = {int(c): others[labels == c] for c in torch.unique(labels)}
        orders: dict[int, list[int]] = {c: [] for c in members}
        while True:
            for c, order in orders.items():
                if not order:
                    shuffled = torch.randperm(len(members[c]), generator=generator)
                    order += members[c][shuffled].tolist()
                yield order.pop(0)

    def state_dict(self) -> dict[str, int]:
        """Where training is: the epoch, and the batches taken from it."""
        epoch, batch = self.epoch, self.batch
        if batch == self.batches:
            epoch, batch = epoch + 1, 0
        return {"seed": self.seed, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for name, value in state.items():
            setattr(self, name, value)
        self._epochs = None
