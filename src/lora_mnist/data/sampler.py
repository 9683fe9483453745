"""Which training images each step sees: their order, replay of other classes, hard images."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

Batch = tuple[Tensor, Tensor]


class Images(Dataset[Batch]):
    """A set of N images, in memory or on the disk.

    Attributes:
        labels: int64, shape (N,).
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Batch:
        """Images, uint8, (B, channels, height, width), and their labels, int64, (B,)."""
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Batch:
        """:meth:`take` under the name by which DataLoader calls it."""
        return self.take(indices)


class ImageTensors(Images):
    """Images in memory; a whole batch is one index operation.

    Args:
        images: uint8, shape (N, channels, height, width).
        labels: int64, shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def take(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[index], self.labels[index]

    def sha256(self) -> str:
        """The SHA-256 of images and labels, in hexadecimal.

        For MNIST's files, ``(tail -c +17 IMAGES; tail -c +9 LABELS) | sha256sum`` gives the same.
        """
        digest = hashlib.sha256(self.images.numpy().data)
        digest.update(self.labels.to(torch.uint8).numpy().data)
        return digest.hexdigest()


def sampling_weights(errors: Tensor, hardness: float) -> Tensor:
    """How often to sample each of N images: more often where a network errs.

    ``w_i = (1 - h) / N + h e_i / sum_j e_j``, with ``h`` the hardness and ``e_i`` the probability
    of an error on image ``i``, ``1 - softmax(logits_i)[label_i]``. This is the importance sampling
    of Katharopoulos and Fleuret 2018, "Not All Samples Are Created Equal", arXiv:1803.00942,
    section 3, with two changes: ``e`` takes the place of the gradient's norm, and the loss is not
    divided by the weights, since hard images are meant to count for more.

    Args:
        errors: the probabilities of an error, float64, shape (N,).
        hardness: from 0, all images alike, to 1, by errors alone.

    Returns:
        The weights, float64, shape (N,); their sum is 1.
    """
    by_errors = errors / errors.sum().clamp(min=torch.finfo(errors.dtype).tiny)
    return (1 - hardness) / len(errors) + hardness * by_errors


class TrainingLoader:
    """The batches of one epoch after another: images to learn from, then replayed ones.

    An epoch takes each image to learn from once, in the order of a plain
    ``DataLoader(shuffle=True)`` whose sampler has the seed ``seed``. The replayed images are one
    endless stream that takes their classes in turn; each class comes in a random order without
    replacement until it is exhausted, then in another. Several processes share each batch: together
    they see what one process alone would see. Where the images cannot be shared out equally, the
    first of the order are seen once more.

    This class is no ``DataLoader``, so that Lightning leaves its order as it is. It can start in
    the middle of an epoch, and counts the batches taken from it, since workers read ahead.

    Args:
        images: the training set, of N images.
        target_indices: the images to learn from; int64, shape (T,).
        other_indices: the images that may be replayed; int64, shape (R,).
        batch_size: images to learn from in a step, over all processes together.
        replay: replayed images in a step, over all processes together.
        seed: of the order of the images to learn from.
        replay_seed: of the stream of replayed images.
        weights: how often to sample each image, float64, shape (N,); ``None``: all alike.
        trainer: says which process this is, of how many, and where an epoch ends.
        num_workers: processes that read images.
    """

    def __init__(
        self,
        images: Images,
        target_indices: Tensor,
        other_indices: Tensor,
        batch_size: int,
        replay: int = 0,
        *,
        seed: int = 0,
        replay_seed: int = 0,
        weights: Tensor | None = None,
        trainer: Trainer | None = None,
        num_workers: int = 0,
    ) -> None:
        self.images = images
        self.target_indices, self.other_indices = target_indices, other_indices
        self.replay, self.weights = replay, weights
        self.seed, self.replay_seed = seed, replay_seed
        self.trainer, self.num_workers = trainer, num_workers
        self.rank = trainer.global_rank if trainer else 0
        self.processes = trainer.world_size if trainer else 1
        self.share = batch_size // self.processes
        self.epoch = self.batch = 0  # where training is: the epoch, and the batches taken of it
        self._epochs: Iterator[list[list[int]]] | None = None

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.target_indices) / self.processes) / self.share)

    def __iter__(self) -> Iterator[Batch]:
        if self._epochs is None:
            self._epochs = islice(self.epochs(), self.epoch, None)
        else:
            self.epoch, self.batch = self.epoch + 1, 0
        loader: DataLoader[Batch] = DataLoader(
            self.images,
            batch_sampler=next(self._epochs)[self.batch :],
            collate_fn=default_convert,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # else it draws from torch's, as dropout does
        )
        for batch in loader:
            self.batch += 1
            yield batch

    def epochs(self) -> Iterator[list[list[int]]]:
        """For each epoch, without end: the indices in each batch, this process's share of them."""
        generator = torch.Generator().manual_seed(self.seed)
        replayed = self._replayed()
        while True:
            order = self._in_random_order(self.target_indices, generator)
            if self.weights is None:
                # torch's RandomSampler shuffles once more when an epoch's images are used up.
                self._in_random_order(self.target_indices, generator)
            total = math.ceil(len(order) / self.processes) * self.processes
            own = order.repeat(self.processes)[:total][self.rank :: self.processes]
            batches = []
            for learnt in torch.split(own, self.share)[: self._batches_an_epoch()]:
                replays = [next(replayed) for _ in range(self.replay)]
                batches.append(learnt.tolist() + replays[self.rank :: self.processes])
            yield batches
            while self.trainer and self.trainer.overfit_batches:  # type: ignore[attr-defined]
                yield batches

    def _replayed(self) -> Iterator[int]:
        """Indices of replayed images, without end: one of each class, and again."""
        generator = torch.Generator().manual_seed(self.replay_seed)
        labels = self.images.labels[self.other_indices]
        classes = [self.other_indices[labels == c] for c in torch.unique(labels)]
        orders: list[list[int]] = [[] for _ in classes]
        while True:
            for members, order in zip(classes, orders, strict=True):
                if not order:
                    order += self._in_random_order(members, generator).tolist()
                yield order.pop(0)

    def _in_random_order(self, members: Tensor, generator: torch.Generator) -> Tensor:
        """``members``; those with a large weight are likely to come first."""
        count = len(members)
        if self.weights is None:
            return members[torch.randperm(count, generator=generator)]
        weights = self.weights[members]
        return members[torch.multinomial(weights, count, generator=generator)]

    def _batches_an_epoch(self) -> int:
        """As many as Lightning takes, which may be fewer than there are."""
        return int(self.trainer.num_training_batches) if self.trainer else len(self)

    def state_dict(self) -> dict[str, int]:
        """Where training is in the images."""
        epoch, batch = self.epoch, self.batch
        if batch >= self._batches_an_epoch():
            epoch, batch = epoch + 1, 0
        seeds = {"seed": self.seed, "replay_seed": self.replay_seed}
        return {**seeds, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for name, value in state.items():
            setattr(self, name, value)
        self._epochs = None
