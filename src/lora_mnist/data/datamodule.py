"""Images of classes as a Lightning DataModule."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from lora_mnist.data.images import Augment, Batch, Images, ImageTensors, per_channel
from lora_mnist.data.mistakes import WithMistakes, read_mistakes, without_mistakes
from lora_mnist.data.plan import Augmented, Selection, TrainingLoader, batches_a_pass, plan
from lora_mnist.errors import require_number
from lora_mnist.progress import progress

#: The sets of a test, by the order of their loaders; the mistakes are those learnt and held out.
TEST_SETS = ("test", "mistakes", "mistakes_test")

#: A number, or one for each channel; ``None`` stands for the training images' own.
Channelwise = float | Sequence[float] | None


class ImageDataModule(LightningDataModule):
    """Images of classes: a choice of classes for training, all of them for evaluation.

    A subclass says where the images come from: it overrides :attr:`sets` and :meth:`read_picture`.
    Images stay uint8 until they are on the device, where :meth:`on_after_batch_transfer` normalises
    each batch. After :meth:`setup`, :meth:`select` says which images to learn from, and
    :meth:`training_on` makes a data module that does so.

    ``configs/train.yaml`` and ``configs/data`` explain the arguments. ``batch_size`` and ``replay``
    are those of all processes together, ``eval_batch_size`` is that of each. ``augment`` gets an
    image as uint8, (channels, height, width), before it is normalised. With ``mistakes``, images of
    all classes are replayed. A label is an index into ``classes``. An argument out of range raises
    ``ValueError``.

    Attributes:
        color_order: channels that the network takes, "rgb" or "bgr"; the images themselves are
            red, green, blue. ``mean`` and ``std`` are in the network's order.
        train_set: images of all classes to train on. :meth:`setup` for "fit" or "validate" sets it
            and ``val_set``; for "test", ``test_set``.
        selection: which of ``train_set`` to learn from, and to replay; ``None``: all classes.
        mistake_sets: the mistakes to learn from, and those held out; empty where there are none.
        held_out: by part, val or test, the part that its images were held out of.
        copies: number of images left out, since two parts had them; ``None``: not searched for.
        sha256: SHA-256 of all the images and labels that were read, by part, in hexadecimal. It is
            known, as the two before are, once :attr:`sets` has been read.
    """

    train_set: Images
    val_set: Images
    test_set: Images
    color_order = "rgb"
    #: The advice where there are no validation images.
    no_validation = "expected data.val_size > 0"

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        channels: int,
        *,
        batch_size: int = 10,
        replay: int = 0,
        mistakes: str | Path | None = None,
        mistakes_test: float = 0.2,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        val_from: str = "train",
        mean: Channelwise = None,
        std: Channelwise = None,
        seed: int | None = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        for key, number, minimum in (
            ("batch_size", batch_size, 1),
            ("replay", replay, 0),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if type(number) is not int or number < minimum:
                raise ValueError(f"{key}={number}: expected an integer >= {minimum}")
        require_number("mistakes_test", mistakes_test, 0, 1)
        if val_from not in ("train", "test"):
            raise ValueError(f"val_from={val_from}: expected one of train, test")
        for key, value, low, high in (("mean", mean, 0, 1), ("std", std, 1e-6, 1e6)):
            is_one = isinstance(value, str) or not isinstance(value, Sequence)
            values: Any = [value] if is_one else value
            if len(values) not in (1, channels):
                raise ValueError(f"{key}={value}: expected one number, or {channels}")
            for each in values if value is not None else ():
                require_number(key, each, low, high)
        self.name, self.classes, self.channels = name, list(classes), channels
        self.batch_size, self.replay = batch_size, replay
        self.mistakes = None if mistakes is None else Path(str(mistakes)).expanduser()
        self.mistakes_test = mistakes_test
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.val_from = val_from
        self.held_out = {"val": val_from}
        self.copies: int | None = None
        self.mean, self.std = mean, std
        self.seed, self.augment = seed, augment
        self.selection: Selection | None = None
        self.mistake_sets: list[ImageTensors] = []
        self.sha256: dict[str, str] = {}

    @cached_property
    def sets(self) -> tuple[Images, Images, Images]:
        """The images of all classes to train on, to validate on, and to test on."""
        raise NotImplementedError

    def read_picture(self, picture: Path | Image) -> Tensor:
        """A picture from elsewhere, in the form of these images; or ValueError with the reason."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the images that ``stage`` needs: "fit", "validate", "test", or "predict" for none.

        Lightning calls it again for each stage; what has been read stays. ``ValueError``, if an
        argument does not fit the images.
        """
        if self.mean is None or self.std is None:
            self.measure()
        if self.mistakes is not None and not self.mistake_sets:
            self.mistake_sets = read_mistakes(
                self.mistakes, self.class_of_folder, self.read_picture, self.mistakes_test
            )
            for part, images in zip(TEST_SETS[1:], self.mistake_sets, strict=True):
                self.sha256[part] = images.sha256()
        learnt = self.mistake_sets[0] if self.mistake_sets else None
        if stage == "test" and not hasattr(self, "test_set"):
            self.test_set = self.sets[2]
            if learnt is not None:
                self.test_set = without_mistakes(self.test_set, learnt, "test")
        if stage in ("fit", "validate") and not hasattr(self, "train_set"):
            self.train_set, self.val_set, _ = self.sets
            if learnt is not None:
                self.train_set = WithMistakes(self.train_set, learnt)
                self.val_set = without_mistakes(self.val_set, learnt, "validation")

    def select(self, target: int | str | Sequence[int | str] | None) -> Selection:
        """The images of this class, or of these classes, to learn; the others may be replayed.

        ``target`` names each class by number or by name. Names come first: with the classes 1, 10
        and 2 the target 10 is the class named 10. ``None``: learn all classes or, where there are
        ``mistakes``, these. ``ValueError``, if it names no class with training images, or one
        twice, or ``replay`` asks for more images than there are.
        """
        labels, classes = self.train_set.labels, self.classes
        numbers = {str(number): number for number in range(len(classes))}
        numbers |= {name: number for number, name in enumerate(classes)}
        names = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
        targets: list[int] = []
        for name in names if target is not None else ():
            if str(name) not in numbers:
                raise ValueError(
                    f"target={target}: expected a class, by its number from 0 to "
                    f"{len(classes) - 1} or its name ({', '.join(classes[:12])}), a list of "
                    "classes, weakest, or null for all"
                )
            targets.append(numbers[str(name)])
        if not names or len(set(targets)) < len(targets):
            raise ValueError(f"target={target}: expected each class once, and at least one")
        is_target = torch.ones_like(labels, dtype=torch.bool)
        if self.mistake_sets:  # they stand at the end
            is_target[: -len(self.mistake_sets[0])] = False
        elif targets:
            is_target = torch.isin(labels, torch.tensor(targets))
        if not is_target.any():
            raise ValueError(f"target={target}: expected a class with training images")
        others = int((~is_target).sum())
        if self.replay > others:
            raise ValueError(
                f"replay={self.replay}: expected at most {others}, the number of training images "
                "that are not learnt"
            )
        return Selection(targets, is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0])

    def training_on(self, selection: Selection) -> Self:
        """A copy of this data module that trains on ``selection``."""
        twin = copy.copy(self)
        twin.selection = selection
        return twin

    def class_of_folder(self, name: str) -> int:
        """The number of the class that a folder is named after; or ValueError."""
        if name not in self.classes:
            raise ValueError(
                f"expected folders named after classes, such as {self.classes[0]}, not {name}"
            )
        return self.classes.index(name)

    def measure(self, images: Images | None = None) -> None:
        """Set ``mean`` and ``std``, where they are ``None``, to those of ``images``.

        By default these are all the training images. The numbers are rounded to four decimals, so
        that they give the same images when they are copied from where they were printed. A channel
        that is the same everywhere has the ``std`` 1, by which it can be divided.
        """
        if images is None:
            images = self.sets[0]
        total = squares = torch.zeros(1, dtype=torch.int64)
        count = 0
        for indices in torch.split(torch.arange(len(images)), 64):
            pixels = images.take(indices.tolist())[0].transpose(0, 1).flatten(1).long()
            # Whole numbers: exact, whatever the order of summation.
            total = total + pixels.sum(1)
            squares = squares + pixels.square().sum(1)
            count += pixels.shape[1]
        mean = total.double() / count
        std = (squares.double() / count - mean**2).clamp(min=0).sqrt()
        if self.color_order == "bgr":
            mean, std = mean.flip(0), std.flip(0)
        means, stds = ([round(value / 255, 4) for value in x.tolist()] for x in (mean, std))
        if self.mean is None:
            self.mean = means if self.channels > 1 else means[0]
        if self.std is None:
            stds = [value or 1.0 for value in stds]
            self.std = stds if self.channels > 1 else stds[0]

    def preprocessing(self) -> dict[str, Any]:
        """The arguments with which another data module prepares pictures as this one does."""
        return {"mean": self.mean, "std": self.std}

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` in float32, of uint8, (N, channels, height, width)."""
        if self.color_order == "bgr":
            images = images.flip(1)
        mean: Any = self.mean if isinstance(self.mean, Sequence) else [self.mean]
        std: Any = self.std if isinstance(self.std, Sequence) else [self.std]
        pixels = images.float().div_(255).sub_(per_channel(tuple(mean), images.device))
        return pixels.div_(per_channel(tuple(std), images.device))

    def batches(
        self,
        images: Images,
        device: torch.device | str = "cpu",
        indices: Tensor | None = None,
        name: str = "images",
    ) -> Iterator[Batch]:
        """``images``, or those at ``indices``, in order, normalised, with labels, on ``device``.

        If it takes long, progress is shown under ``name``.
        """
        order = range(len(images)) if indices is None else indices.tolist()
        loader = self._eval_loader(images, order)
        for batch, labels in progress(loader, f"{name}, batch", len(loader)):
            yield self.normalise(batch.to(device)), labels.to(device)

    @cached_property
    def plan_seed(self) -> int:
        """The seed of the plan; where ``seed`` is ``None``, torch draws it at the first use.

        A plain ``DataLoader(shuffle=True)`` draws two: for its workers, then for its sampler.
        """
        if self.seed is not None:
            return self.seed
        _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
        return int(seed)

    def plan(self) -> Iterator[list[int]]:
        """The batches of a training on these images, as indices, without end: see :func:`.plan`."""
        return plan(
            self.selection or self.select(None),
            self.train_set.labels,
            batch_size=self.batch_size,
            replay=self.replay,
            seed=self.plan_seed,
            processes=self.trainer.world_size if self.trainer else 1,
        )

    def read(self, batches: Iterable[list[int]], first: int) -> DataLoader[Batch]:
        """The images of ``batches`` of the plan, of which the first has the number ``first``.

        Each of several processes reads its share. Images are augmented here, not yet normalised.
        """
        rank = self.trainer.global_rank if self.trainer else 0
        processes = self.trainer.world_size if self.trainer else 1
        shares = (batch[rank::processes] for batch in batches)
        if self.augment is None:
            return self.loader(self.train_set, batch_sampler=shares)
        images = Augmented(self.train_set, self.augment, self.plan_seed, rank)
        return self.loader(images, batch_sampler=enumerate(shares, first))

    def train_dataloader(self) -> TrainingLoader:
        """The batches of the plan from the Trainer's step on."""
        assert self.trainer is not None
        selection = self.selection or self.select(None)
        batches = batches_a_pass(selection, self.batch_size, self.trainer.world_size)
        return TrainingLoader(self.plan, self.read, batches, self.trainer)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out images in order; nothing where there are none."""
        return self._eval_loader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """The whole test set in order; after it the mistakes, those learnt and those held out."""
        sets = [self.test_set, *(images for images in self.mistake_sets if len(images))]
        return [self._eval_loader(images) for images in sets]

    def _eval_loader(self, images: Images, order: Any = None) -> DataLoader[Batch]:
        """Batches of the images in ``order``; ``None``: this process's share of all."""
        if order is None and self.trainer:
            order = range(self.trainer.global_rank, len(images), self.trainer.world_size)
        return self.loader(images, batch_size=self.eval_batch_size, sampler=order)

    def loader(self, images: Images, **order: Any) -> DataLoader[Batch]:
        """torch's DataLoader in an order; it draws nothing from torch's global generator."""
        is_cuda = self.trainer and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            images,
            collate_fn=default_convert,  # Images give whole batches
            num_workers=self.num_workers,
            pin_memory=bool(is_cuda),
            generator=torch.Generator(),  # torch's own is for dropout alone
            **order,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is."""
        images, labels = batch
        return self.normalise(images), labels
