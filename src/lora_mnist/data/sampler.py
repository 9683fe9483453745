"""Which training image is drawn next: the order, replay of other classes, and hardness."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

Batch = tuple[Tensor, Tensor]


class ImageTensors(Dataset[Batch]):
    """Images and labels in two tensors; a whole batch is one index operation.

    Args:
        images: uint8, shape (N, channels, height, width).
        labels: int64, shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def to(self, device: torch.device) -> "ImageTensors":
        """The same images on ``device``; the very tensors, if they are there."""
        return ImageTensors(self.images.to(device), self.labels.to(device))

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of ``indices``; ``DataLoader`` prefers this to one call an image."""
        index = torch.tensor(indices)
        return self.images[index], self.labels[index]


class DrawWeights(NamedTuple):
    """How often each training image is drawn, compared with the others it is drawn among.

    Args:
        target: of the images to learn from, float64, shape (N,).
        replay: of the images to replay, float64, shape (M,), each class by itself; ``None`` where
            nothing is replayed.
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


class Place(NamedTuple):
    """How far training has come in the images that it draws.

    Args:
        seed: of the order of the images.
        shuffles: how often they were shuffled before the epoch that is under way.
        batch: batches drawn in that epoch.
        batches: batches drawn in all epochs.
    """

    seed: int
    shuffles: int = 0
    batch: int = 0
    batches: int = 0


def plain_seed() -> int:
    """The seed of the order that a plain ``DataLoader(shuffle=True)`` would take now.

    It comes from torch's global generator: the first draw is for the loader's workers, the second
    for its sampler. Drawn here, since Lightning starts a loader once more than a plain loop does.
    """
    _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
    return int(seed)


class Order(DistributedSampler[int]):
    """The order of an epoch's indices, 0 to ``count - 1``, each once; another one every epoch.

    An epoch's order depends on the seed and on the number of shuffles before it alone.

    Args:
        count: how many images there are.
        seed: of the order's own generator.
        weights: of the images, shape (count,). The next image is drawn among those that are left,
            in proportion to them. ``None``: all images alike.
        shuffles: how often to shuffle beforehand, to go on with an epoch of an earlier run.
        skip: how many of this process's images that run has drawn in the epoch.
        rank: number of this process; it takes every ``processes``-th image.
        processes: how many share the images. Where they cannot be shared out equally, the first of
            the order are seen once more.

    Raises:
        ValueError: if there is not one weight an image.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        weights: Tensor | None = None,
        shuffles: int = 0,
        skip: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        # As a DistributedSampler Lightning takes it for what it is, and makes none of its own.
        super().__init__(range(count), num_replicas=processes, rank=rank, shuffle=False)  # type: ignore[arg-type]
        if weights is not None and len(weights) != count:
            raise ValueError(
                f"draw_weights: expected {count} weights, one an image, not {len(weights)}"
            )
        self._count = count
        self._seed = seed
        self._weights = weights
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffles = 0
        for _ in range(shuffles):
            self._shuffled()
        self._before = self._shuffles
        self._skip = skip

    def place(self, batch: int, batches: int) -> Place:
        """Where a later run goes on.

        Args:
            batch: batches drawn in the epoch that is under way; 0 before the next one begins.
            batches: batches drawn in all epochs.
        """
        return Place(self._seed, self._before if batch else self._shuffles, batch, batches)

    def __iter__(self) -> Iterator[int]:
        self._before = self._shuffles
        indices = self._shuffled()
        indices = (indices * self.num_replicas)[: self.total_size]
        skip, self._skip = self._skip, 0
        # Once an epoch's images are used up, torch's RandomSampler shuffles once more; several
        # processes use them up at once, before they share them. With weights nothing does so.
        if self.num_replicas > 1:
            self._shuffle_once_more()
        yield from indices[self.rank :: self.num_replicas][skip:]
        if self.num_replicas == 1:
            self._shuffle_once_more()

    def _shuffle_once_more(self) -> None:
        if self._weights is None:
            self._shuffled()

    def _shuffled(self) -> list[int]:
        self._shuffles += 1
        if self._weights is None:
            drawn = torch.randperm(self._count, generator=self._generator)
        else:
            drawn = torch.multinomial(self._weights, self._count, generator=self._generator)
        indices: list[int] = drawn.tolist()
        return indices


class WithReplay(ImageTensors):
    """Images to learn from; every batch of them is followed by images of other classes.

    The replayed images are one endless stream, the same in every process. It takes the classes in
    turn. Each class's images come in a random order without replacement until they are exhausted,
    then in another order.

    Args:
        target: the images to learn from; only they have indices.
        others: the images to replay.
        count: replayed images a batch, over all processes together.
        seed: of the stream, which has a generator of its own.
        weights: of ``others``, float64, shape (M,). The next image of a class is drawn in
            proportion to them. ``None``: all images alike.
        skip: how many batches an earlier run has drawn.
        rank: number of this process; it takes every ``processes``-th image of the stream.
        processes: how many processes share each batch.

    Raises:
        ValueError: if there is not one weight for each of ``others``.
    """

    def __init__(
        self,
        target: ImageTensors,
        others: ImageTensors,
        count: int,
        seed: int,
        weights: Tensor | None = None,
        skip: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(target.images, target.labels)
        if weights is not None and len(weights) != len(others):
            raise ValueError(
                f"draw_weights: expected {len(others)} weights of replay, not {len(weights)}"
            )
        self.others = others
        self.count = count
        self.share = slice(rank, None, processes)
        self._stream = _stratified(others.labels, weights, torch.Generator().manual_seed(seed))
        self._drawn = torch.empty(0, dtype=torch.int64)
        self._draw(skip * count)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of ``indices``, then this process's share of the replayed images."""
        images, labels = super().__getitems__(indices)
        index = self._draw(self.count)[self.share]
        return (
            torch.cat([images, self.others.images[index]]),
            torch.cat([labels, self.others.labels[index]]),
        )

    def _draw(self, count: int) -> Tensor:
        """The next ``count`` indices of the stream."""
        pieces, missing = [self._drawn], count - len(self._drawn)
        while missing > 0:
            pieces.append(next(self._stream))
            missing -= len(pieces[-1])
        index = torch.cat(pieces)
        self._drawn = index[count:]
        return index[:count]


def _stratified(
    labels: Tensor, weights: Tensor | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """Pieces of an endless stream of indices that takes the classes in ``labels`` in turn."""
    classes = [(labels == c).nonzero().flatten() for c in sorted(set(labels.tolist()))]
    orders = [index[:0] for index in classes]

    def shuffled(index: Tensor) -> Tensor:
        if weights is None:
            return index[torch.randperm(len(index), generator=generator)]
        return index[torch.multinomial(weights[index], len(index), generator=generator)]

    while True:
        orders = [
            order if len(order) else shuffled(index)
            for order, index in zip(orders, classes, strict=True)
        ]
        turns = min(len(order) for order in orders)
        yield torch.stack([order[:turns] for order in orders], dim=1).flatten()
        orders = [order[turns:] for order in orders]
