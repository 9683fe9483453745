"""Which training images each step sees: their order, replay of other classes, and hardness."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert

Batch = tuple[Tensor, Tensor]


class Images(Dataset[Batch]):
    """A set of N images, in memory or on the disk.

    Attributes:
        labels: int64, shape (N,).
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images, uint8, (B, channels, height, width), and their labels; DataLoader calls this."""
        raise NotImplementedError


class ImageTensors(Images):
    """Images in memory; a whole batch is one index operation.

    Args:
        images: uint8, shape (N, channels, height, width).
        labels: int64, shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices, dtype=torch.int64)
        return self.images[index], self.labels[index]


class DrawWeights(NamedTuple):
    """How often each training image is drawn, compared with the others it is drawn among.

    Attributes:
        target: of the images to learn from, float64, shape (N,).
        replay: of the images to replay, float64, shape (M,); ``None`` where nothing is replayed.
    """

    target: Tensor
    replay: Tensor | None


def weigh(errors: Tensor, hardness: float, labels: Tensor | None = None) -> Tensor:
    """Weights with which images are drawn, given how likely a network errs on each.

    Of N images that are drawn from together, image i gets ``(1 - h) / N + h e_i / sum_j e_j`` with
    ``h`` the hardness and ``e`` the errors. This is the importance sampling of Katharopoulos and
    Fleuret 2018, "Not All Samples Are Created Equal", arXiv:1803.00942, section 3, with two
    changes: ``e`` stands for the norm of the gradient, and the loss is not divided by the weights.
    Hard images are meant to count for more.

    Args:
        errors: ``1 - softmax(z)_y`` for logits ``z`` and label ``y``; float64, shape (N,).
        hardness: the share ``h`` of the draw that follows the errors, 0 <= h < 1.
        labels: shape (N,); where given, each class is drawn from by itself.

    Returns:
        float64, shape (N,); the weights of all images that are drawn from together sum to 1.
    """
    if labels is None:
        by_errors = errors / errors.sum().clamp(min=torch.finfo(errors.dtype).tiny)
        return (1 - hardness) / len(errors) + hardness * by_errors
    weights = torch.zeros_like(errors)
    for c in set(labels.tolist()):
        weights[labels == c] = weigh(errors[labels == c], hardness)
    return weights


class TrainingSampler(Sampler[list[int]]):
    """Batches of indices into a training set: images to learn from, then replayed ones.

    An epoch draws each image to learn from once, in the order of a plain
    ``DataLoader(shuffle=True)`` whose sampler has the seed ``seed``. The replayed images are one
    endless stream that takes their classes in turn; each class comes in a random order without
    replacement until it is exhausted, then in another. Several processes share each batch: together
    they see what one process alone would see. Where the images cannot be shared out equally, the
    first of the order are seen once more.

    Args:
        labels: of the training set, int64, shape (N,).
        target: indices of the images to learn from.
        others: indices of the images to replay.
        batch_size: images to learn from in a step, over all processes together.
        replay: of ``others`` in a step, over all processes together.
        seed: of the order of the images to learn from.
        replay_seed: of the stream of replayed images.
        weights: with which images are drawn, see :func:`weigh`; ``None``: all alike.
        rank: number of this process.
        processes: how many share each batch; ``batch_size`` and ``replay`` are multiples of it.
        repeat: whether every epoch has the order of the first.

    Attributes:
        epoch, batch: where the next iteration begins: the epoch, and its first batch.
        batches: batches drawn in all epochs before.
    """

    def __init__(
        self,
        labels: Tensor,
        target: Tensor,
        others: Tensor,
        batch_size: int,
        replay: int = 0,
        *,
        seed: int = 0,
        replay_seed: int = 0,
        weights: DrawWeights | None = None,
        rank: int = 0,
        processes: int = 1,
        repeat: bool = False,
    ) -> None:
        self.labels = labels
        self.target, self.others = target, others
        self.weights = weights or DrawWeights(torch.empty(0), None)
        self.share, self.replay = batch_size // processes, replay
        self.seed, self.replay_seed, self.repeat = seed, replay_seed, repeat
        self.rank, self.processes = rank, processes
        self.epoch = self.batch = self.batches = 0
        self._generator, self._shuffled = torch.Generator(), 0
        self._replayed, self._replays = self._replay_stream(), 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(math.ceil(len(self.target) / self.processes) / self.share)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(0 if self.repeat else self.epoch)
        total = math.ceil(len(order) / self.processes) * self.processes
        order = order.repeat(self.processes)[:total][self.rank :: self.processes]
        self._go_to_replay(self.batch if self.repeat else self.batches)
        for start in range(self.batch * self.share, len(order), self.share):
            indices: list[int] = self.target[order[start : start + self.share]].tolist()
            if self.replay:
                replayed = [next(self._replayed) for _ in range(self.replay)]
                self._replays += 1
                indices += replayed[self.rank :: self.processes]
            yield indices

    def _order(self, epoch: int) -> Tensor:
        """The order of an epoch: a permutation of the images to learn from."""
        if epoch < self._shuffled or not self._shuffled:
            self._generator.manual_seed(self.seed)
            self._shuffled = 0
        weights, count = self.weights.target, len(self.target)
        while self._shuffled <= epoch:
            if len(weights):
                order = torch.multinomial(weights, count, generator=self._generator)
            else:
                order = torch.randperm(count, generator=self._generator)
                # torch's RandomSampler shuffles once more when an epoch's images are used up.
                torch.randperm(count, generator=self._generator)
            self._shuffled += 1
        return order

    def _go_to_replay(self, batches: int) -> None:
        """Put the stream where it is after so many batches; a loader may have drawn ahead."""
        if batches < self._replays:
            self._replayed, self._replays = self._replay_stream(), 0
        for _ in range((batches - self._replays) * self.replay):
            next(self._replayed)
        self._replays = batches

    def _replay_stream(self) -> Iterator[int]:
        """Indices of replayed images, without end: one of each class, and again."""
        generator = torch.Generator().manual_seed(self.replay_seed)
        labels, weights = self.labels[self.others], self.weights.replay
        classes = [(labels == c).nonzero().flatten() for c in sorted(set(labels.tolist()))]
        orders: list[list[int]] = [[] for _ in classes]
        while True:
            for c, members in enumerate(classes):
                if orders[c]:
                    continue
                if weights is None:
                    order = torch.randperm(len(members), generator=generator)
                else:
                    order = torch.multinomial(weights[members], len(members), generator=generator)
                orders[c] = self.others[members[order]].flip(0).tolist()
            for order_of_class in orders:
                yield order_of_class.pop()


def split_by_class(labels: Tensor, targets: Sequence[int] | None) -> Batch:
    """Indices of the images of ``targets``, and of all others; shapes (n,) and (N - n,)."""
    if targets is None:
        return torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
    is_target = torch.isin(labels, torch.tensor(targets))
    return is_target.nonzero().flatten(), (~is_target).nonzero().flatten()


class TrainingLoader:
    """A ``DataLoader`` that goes on in the middle of an epoch.

    It counts the batches that were taken from it: workers draw ahead. It is no ``DataLoader``
    itself, so that Lightning leaves its sampler as it is.

    Args:
        images: the training set.
        sampler: what is drawn from it.
        trainer: says where an epoch ends.
        num_workers: processes that read images.
    """

    def __init__(
        self, images: Images, sampler: TrainingSampler, trainer: Trainer | None, num_workers: int
    ) -> None:
        self.sampler = sampler
        self.trainer = trainer
        self.loader: DataLoader[Batch] = DataLoader(
            images,
            batch_sampler=sampler,
            collate_fn=default_convert,
            num_workers=num_workers,
            generator=torch.Generator(),  # else it draws from torch's, as dropout does
        )
        self._has_begun = False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.sampler
        if self._has_begun:
            sampler.epoch, sampler.batch = sampler.epoch + 1, 0
        self._has_begun = True
        for batch in self.loader:
            sampler.batch += 1
            sampler.batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where training has come in the images."""
        sampler, epoch, batch = self.sampler, self.sampler.epoch, self.sampler.batch
        if self.trainer is not None and batch >= self.trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        return {
            "seed": sampler.seed,
            "replay_seed": sampler.replay_seed,
            "epoch": epoch,
            "batch": batch,
            "batches": sampler.batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for name, value in state.items():
            setattr(self.sampler, name, value)
        self._has_begun = False
