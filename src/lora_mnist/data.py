"""MNIST and its relatives, held in memory, as a Lightning DataModule."""

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision.datasets
from filelock import FileLock
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler
from torchvision.datasets.utils import check_integrity

from lora_mnist.files import publish

Batch = tuple[Tensor, Tensor]


class ImageTensors(Dataset[Batch]):
    """Images and labels in two tensors; a whole batch is one index operation.

    Args:
        images: uint8, shape (N, 1, height, width).
        labels: int64, shape (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of ``indices``; ``DataLoader`` prefers this to one call an image."""
        index = torch.tensor(indices)
        return self.images[index], self.labels[index]


class WithReplay(ImageTensors):
    """Images to learn from; every batch of them is followed by images of other classes.

    The replayed images are one endless stream, the same in every process: it takes the classes in
    turn, and each class's images in a random order without replacement until they are exhausted,
    then in another.

    Args:
        target: the images to learn from; only they have indices.
        others: the images to replay.
        count: replayed images a batch, over all processes together.
        seed: seed of the stream, which has a generator of its own.
        rank: number of this process; it takes every ``processes``-th image of the stream.
        processes: how many processes share each batch.
        weights: of ``others``, float64, shape (N,): in proportion to them the next image of a class
            is drawn; ``None``: all images alike.
    """

    def __init__(
        self,
        target: ImageTensors,
        others: ImageTensors,
        count: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(target.images, target.labels)
        self.others = others
        self.count = count
        self.share = slice(rank, None, processes)
        self._stream = _stratified(others.labels, weights, torch.Generator().manual_seed(seed))
        self._drawn = torch.empty(0, dtype=torch.int64)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of ``indices``, then this process's share of the replayed images."""
        images, labels = super().__getitems__(indices)
        while len(self._drawn) < self.count:
            self._drawn = torch.cat([self._drawn, next(self._stream)])
        index, self._drawn = self._drawn[: self.count][self.share], self._drawn[self.count :]
        return (
            torch.cat([images, self.others.images[index]]),
            torch.cat([labels, self.others.labels[index]]),
        )


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


class MNISTDataModule(LightningDataModule):
    """A dataset of the MNIST family: full or filtered for training, whole for evaluation.

    Images stay uint8 in memory and in the loader; :meth:`on_after_batch_transfer` normalises each
    batch on the device, ``(pixel / 255 - mean) / std``.

    Args:
        name: what files and results call the dataset.
        dataset: class in ``torchvision.datasets``: MNIST, FashionMNIST, KMNIST or QMNIST.
        data_dir: folder that holds (or will hold) ``<dataset>/raw``.
        digit: train on this class, or these classes, alone; ``None`` for all of them.
        batch_size: training images a step, over all processes together.
        replay: images of the other classes that accompany each batch, over all processes together,
            evenly over the classes; an integer >= 0, and 0 where ``digit`` is ``None``.
        hardness: share ``h`` of the draw of training images that follows how likely a network is to
            err on them, see :meth:`rate`; from 0, all images alike, to below 1.
        eval_batch_size: images a step in validation and test, per process.
        val_size: the last so many training images are held out for validation.
        mean: mean of the training pixels, on the scale 0 to 1.
        std: standard deviation of the training pixels, on the same scale.
        seed: seed of the order in which training images are drawn, which has a generator of its
            own: whatever else two runs differ in, they see the same batches. ``None`` takes the
            order that a plain ``DataLoader(shuffle=True)`` would take from torch's generator.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        name: str,
        dataset: str,
        data_dir: str,
        digit: int | Sequence[int] | None,
        batch_size: int,
        replay: int,
        hardness: float,
        eval_batch_size: int,
        val_size: int,
        mean: float,
        std: float,
        seed: int | None,
    ) -> None:
        super().__init__()
        if dataset not in _DATASETS:
            raise ValueError(f"dataset={dataset}: expected one of {', '.join(_DATASETS)}")
        self.name = name
        self.dataset = dataset
        self.data_dir = Path(data_dir)
        self.classes: list[str] = list(getattr(torchvision.datasets, dataset).classes)
        self.digit = digit
        self._chosen = _checked_digits(digit, len(self.classes))
        self.batch_size = _checked_int("batch_size", batch_size, minimum=1)
        self.replay = _checked_int("replay", replay, minimum=0)
        if replay and self._chosen is None:
            raise ValueError(f"replay={replay}: expected 0, since digit=null trains on all classes")
        if type(hardness) not in (int, float) or not 0 <= hardness < 1:
            raise ValueError(f"hardness={hardness}: expected a number from 0 to below 1")
        self.hardness = hardness
        self.eval_batch_size = _checked_int("eval_batch_size", eval_batch_size, minimum=1)
        self.val_size = _checked_int("val_size", val_size, minimum=0)
        if not isinstance(mean, int | float):
            raise ValueError(f"mean={mean}: expected a number")
        if not (isinstance(std, int | float) and std > 0):
            raise ValueError(f"std={std}: expected a number > 0")
        self.mean = mean
        self.std = std
        self.seed = None if seed is None else _checked_int("seed", seed, minimum=0)
        #: What :meth:`rate` found: weights of the "target" to learn and of the "replay".
        self.draw_weights: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """Extract the dataset, or download it, where that has not been done yet.

        Raises:
            ValueError: if the files are damaged or missing and cannot be downloaded.
        """
        load_images(self.dataset, self.data_dir, train=False)

    def setup(self, stage: str) -> None:
        """Select the images that ``stage`` ("fit", "validate" or "test") needs.

        Raises:
            ValueError: if ``val_size`` leaves nothing to train on, or ``replay`` asks for more
                images than there are.
        """
        if stage == "test":
            self.test_set = ImageTensors(*load_images(self.dataset, self.data_dir, train=False))
            return
        images, labels = load_images(self.dataset, self.data_dir, train=True)
        split = len(labels) - self.val_size
        if split < 1:
            raise ValueError(f"val_size={self.val_size}: expected less than {len(labels)}")
        self.val_set = ImageTensors(images[split:], labels[split:])
        images, labels = images[:split], labels[:split]
        if self._chosen is not None:
            chosen = torch.isin(labels, torch.tensor(self._chosen))
            if self.replay:
                self.replay_set = ImageTensors(images[~chosen], labels[~chosen])
                if chosen.all():
                    raise ValueError(
                        f"replay={self.replay}: expected 0, since digit={self.digit} leaves no "
                        "other class"
                    )
                if self.replay > len(self.replay_set):
                    raise ValueError(
                        f"replay={self.replay}: expected at most the {len(self.replay_set)} "
                        "training images of other classes"
                    )
            images, labels = images[chosen], labels[chosen]
        if len(labels) == 0:
            raise ValueError(f"digit={self.digit}: expected a class with training images")
        self.train_set = ImageTensors(images, labels)

    @torch.no_grad()
    def rate(self, net: nn.Module) -> None:
        """Let ``net`` decide how often each training image, replayed or not, is drawn.

        Of the N images that are drawn from together (those to learn, or one class of the replay)
        image i comes next, among those not drawn yet, with a probability in proportion to
        ``(1 - h) / N + h e_i / sum_j e_j``. Here ``h`` is ``hardness``, and with the logits ``z``
        of ``net``, ``e = 1 - softmax(z)_y`` is how likely it errs on an image of label ``y``: the
        importance sampling of Katharopoulos and Fleuret 2018, "Not All Samples Are Created Equal",
        arXiv:1803.00942, section 3, with ``e`` for the gradient's norm and no weights to undo it:
        what is drawn more often shall count for more.

        Args:
            net: from normalised images to logits; in the mode and on the device that it is used in.
        """
        self.draw_weights["target"] = self._weights(self._errors(net, self.train_set))
        if self.replay:
            labels, errors = self.replay_set.labels, self._errors(net, self.replay_set)
            weights = self.draw_weights["replay"] = torch.zeros_like(errors)
            for c in set(labels.tolist()):
                weights[labels == c] = self._weights(errors[labels == c])

    def _errors(self, net: nn.Module, images: ImageTensors) -> Tensor:
        """How likely ``net`` is to err on each of ``images``, float64, shape (N,)."""
        splits = [torch.split(t, self.eval_batch_size) for t in (images.images, images.labels)]
        errors = []
        for batch in zip(*splits, strict=True):
            pixels, labels = self.on_after_batch_transfer(batch, 0)
            right = net(pixels).double().softmax(dim=1).gather(1, labels.unsqueeze(1))
            errors.append(1 - right.squeeze(1))
        return torch.cat(errors)

    def _weights(self, errors: Tensor) -> Tensor:
        by_errors = errors / errors.sum().clamp(min=torch.finfo(errors.dtype).tiny)
        return (1 - self.hardness) / len(errors) + self.hardness * by_errors

    def batch_size_per_process(self, processes: int) -> int:
        """Each of ``processes`` takes an equal share of a training batch.

        Raises:
            ValueError: if ``batch_size`` or ``replay`` cannot be shared out equally.
        """
        for name, size in {"batch_size": self.batch_size, "replay": self.replay}.items():
            if size % processes:
                raise ValueError(f"{name}={size}: expected a multiple of the {processes} processes")
        return self.batch_size // processes

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches, replay behind; a process of several gets its share of each batch.

        Together the processes see batch by batch what one process alone would see. Where the images
        cannot be shared out equally, the first of the order are seen once more.
        """
        rank, processes = 0, 1
        if self.trainer:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        images = self.train_set
        if self.replay:
            # initial_seed draws nothing: the order of the target's images stays as without replay.
            seed = torch.initial_seed() if self.seed is None else self.seed
            weights_of_others = self.draw_weights.get("replay")
            images = WithReplay(
                *(images, self.replay_set, self.replay, seed, rank, processes, weights_of_others)
            )
        generator = self._order_generator()
        sampler: Sampler[int] = RandomSampler(images, generator=generator)
        if "target" in self.draw_weights:
            weights = self.draw_weights["target"].tolist()
            sampler = WeightedRandomSampler(weights, len(weights), False, generator)
        if processes > 1:  # Lightning's own choice would draw another order
            sampler = DistributedSamplerWrapper(
                sampler, num_replicas=processes, rank=rank, shuffle=False
            )
        return DataLoader(
            images,
            batch_size=self.batch_size_per_process(processes),
            sampler=sampler,
            collate_fn=_as_indexed,
        )

    def _order_generator(self) -> torch.Generator:
        seed = self.seed
        if seed is None:
            # A DataLoader's first draw is for its workers, its sampler's seed the second. Drawn
            # here, since Lightning starts the loader once more than a plain loop does.
            _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
        return torch.Generator().manual_seed(seed)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out images in order; nothing where ``val_size`` is 0."""
        return self._eval_dataloader(self.val_set) if self.val_size else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The whole test set in order."""
        return self._eval_dataloader(self.test_set)

    def _eval_dataloader(self, dataset: ImageTensors) -> DataLoader[Batch]:
        sampler = None
        if self.trainer and self.trainer.world_size > 1:
            # Lightning's own choice pads the shards to equal length and would count images twice.
            sampler = UnrepeatedDistributedSampler(
                dataset,
                num_replicas=self.trainer.world_size,
                rank=self.trainer.global_rank,
                shuffle=False,
            )
        return DataLoader(
            dataset, batch_size=self.eval_batch_size, sampler=sampler, collate_fn=_as_indexed
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is, uint8 to float32, in torchvision's order of operations."""
        images, labels = batch
        return images.float().div_(255).sub_(self.mean).div_(self.std), labels


_DATASETS = ("MNIST", "FashionMNIST", "KMNIST", "QMNIST")


def _as_indexed(batch: Any) -> Any:
    """Collate function for batches that were indexed whole."""
    return batch


def _checked_int(name: str, value: Any, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name}={value}: expected an integer >= {minimum}")
    return value


def _checked_digits(digit: Any, num_classes: int) -> list[int] | None:
    if digit is None:
        return None
    digits = list(digit) if isinstance(digit, Sequence) and not isinstance(digit, str) else [digit]
    known = all(type(d) is int and 0 <= d < num_classes for d in digits)
    if not digits or not known:
        raise ValueError(
            f"digit={digit}: expected null, a class from 0 to {num_classes - 1} or a list of them"
        )
    return digits


@lru_cache(maxsize=4)
def load_images(dataset: str, data_dir: Path, train: bool) -> Batch:
    """All images of one split, (N, 1, height, width) uint8, and their labels, (N,) int64.

    Kept for the life of the process: the jobs of a sweep share one copy.

    Raises:
        ValueError: if the files are damaged or missing and cannot be downloaded.
    """
    dataset_class = getattr(torchvision.datasets, dataset)
    try:
        split = _read(dataset_class, data_dir, train) or _extract(dataset_class, data_dir, train)
    except OSError as error:
        raise ValueError(f"data_dir={data_dir}: expected a readable folder ({error})") from error
    labels = split.targets
    if labels.ndim == 2:  # QMNIST: the class, then where the image came from
        labels = labels[:, 0]
    return split.data.unsqueeze(1), labels


def _read(dataset_class: Any, root: Path, train: bool) -> Any:
    """torchvision's dataset, or ``None`` where its extracted files are missing or damaged."""
    try:
        return dataset_class(root, train=train)
    except (RuntimeError, ValueError, AssertionError):
        return None


def _extract(dataset_class: Any, data_dir: Path, train: bool) -> Any:
    """Let torchvision verify, download where it must, and extract, one process at a time.

    It works in a folder of its own, from where the complete files are renamed into place: whoever
    looks meanwhile, or comes after a crash, finds no half-written file.
    """
    raw = data_dir / dataset_class.__name__ / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(data_dir / ".lock"),
        TemporaryDirectory(dir=data_dir, prefix=".extract-") as temporary,
    ):
        # Another process may have extracted while this one waited for the lock.
        if split := _read(dataset_class, data_dir, train):
            return split
        work = Path(temporary) / dataset_class.__name__ / "raw"
        work.mkdir(parents=True)
        for archive in raw.glob("*.gz"):
            shutil.copyfile(archive, work / archive.name)
        try:
            split = dataset_class(temporary, train=train, download=True)
        except (RuntimeError, OSError) as error:
            state = _damaged_archives(dataset_class, raw) or "files missing"
            raise ValueError(
                f"data_dir={data_dir}: {dataset_class.__name__}: {state}, and no download "
                f"possible; expected the official .gz files in {raw}"
            ) from error
        for file in work.iterdir():
            publish(file, raw / file.name)
        return split


def _damaged_archives(dataset_class: Any, raw: Path) -> str:
    resources = dataset_class.resources
    if isinstance(resources, dict):  # QMNIST: a list for each split
        resources = [resource for split in resources.values() for resource in split]
    names = [
        path.name
        for url, md5 in resources
        if (path := raw / Path(url).name).exists() and not check_integrity(path, md5)
    ]
    return f"{', '.join(names)} damaged (wrong MD5)" if names else ""
