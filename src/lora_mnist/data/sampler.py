"""The training images of each step: their order, and the replay of other classes."""

import math
from collections.abc import Iterator
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import torch

from lora_mnist.data.images import Augmented, Batch

if TYPE_CHECKING:
    from lora_mnist.data.datamodule import ImageDataModule


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

    This class is no ``DataLoader``, so that Lightning leaves its order as it is. Each iteration is
    the next epoch. It can start in the middle of one, and counts the batches taken from it, since
    workers read ahead.
    """

    def __init__(self, data: "ImageDataModule", seed: int) -> None:
        self.data, self.trainer = data, data.trainer
        self.seed = seed
        self.rank = self.trainer.global_rank if self.trainer else 0
        self.processes = self.trainer.world_size if self.trainer else 1
        self.batch_size = data.batch_size // self.processes  # of this process
        self.epoch = self.batch = 0  # the current epoch, and the batches taken from it
        self.batches: int | None = None  # all batches of the current epoch, once it has begun
        self._epochs: Iterator[list[list[int]]] | None = None

    def __len__(self) -> int:
        images = math.ceil(len(self.data.target_indices) / self.processes)
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
        images, batches = self.data.train_set, list[Any](next(self._epochs))
        self.batches, batches = len(batches), batches[self.batch :]
        if self.data.augment is not None:
            images = Augmented(images, self.data.augment)
            # The name of a batch is the seed of its changes.
            epoch = f"{self.seed} {self.rank} {self.epoch}"
            batches = [(f"{epoch} {n}", batch) for n, batch in enumerate(batches, self.batch)]
        for batch in self.data.loader(images, batch_sampler=batches):
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
                learnt = self.data.target_indices
                order = learnt[torch.randperm(len(learnt), generator=generator)]
                # torch's RandomSampler shuffles once more when an epoch's images are used up.
                torch.randperm(len(learnt), generator=generator)
                total = math.ceil(len(order) / self.processes) * self.processes
                share = order.repeat(self.processes)[:total][self.rank :: self.processes]
                missing = batches_an_epoch - len(batches)
                for indices in torch.split(share, self.batch_size)[:missing]:
                    replays = [next(replayed) for _ in range(self.data.replay)]
                    batches.append(indices.tolist() + replays[self.rank :: self.processes])
            yield batches
            while self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
                yield batches

    def _replayed(self) -> Iterator[int]:
        """Indices of replayed images, without end: one of each class in turn."""
        generator = torch.Generator().manual_seed(self.seed)
        others, turns = self.data.other_indices, self.data.replay_turns
        labels = self.data.train_set.labels[others]
        members = {int(c): others[labels == c] for c in torch.unique(labels)}
        most_turns = max([1, *turns.values()])
        orders: dict[int, list[int]] = {c: [] for c in members}
        for turn in count():
            for c, order in orders.items():
                if turn % most_turns >= turns.get(c, 1):
                    continue  # this class has had its turns of this round
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
