"""Images of classes as a Lightning DataModule, wherever they come from."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_convert

from lora_mnist.data.augment import augmented
from lora_mnist.data.mistakes import WithMistakes, read_mistakes
from lora_mnist.data.sampler import (
    Batch,
    DrawWeights,
    Images,
    ImageTensors,
    TrainingLoader,
    TrainingSampler,
    split_by_class,
    weigh,
)

#: A class, by number or by name, or several; ``None`` for all of them.
Target = int | str | Sequence[int | str] | None
#: A number, or one for each channel; ``None`` stands for the training images' own.
Channelwise = float | Sequence[float] | None


class ImageDataModule(LightningDataModule):
    """Images of classes: filtered by class for training, whole for evaluation.

    Where they come from is a subclass's business: it overrides :meth:`prepare_data`,
    :meth:`training_images`, :meth:`test_images` and :meth:`read_picture`. Images stay uint8 until
    they are on the device, where :meth:`on_after_batch_transfer` normalises each batch.

    Args:
        name: what files and results call the dataset.
        classes: what the classes are called; a label is an index into this list.
        channels: of the images.
        target: train on this class, or these classes, alone, each by number or by name; ``None``
            for all of them, and where there are ``mistakes``.
        batch_size: training images a step, over all processes together.
        replay: images of the other classes that accompany each batch, over all processes together,
            evenly over the classes; 0 where all are trained on; of all classes beside ``mistakes``.
        mistakes: a folder of pictures, one subfolder a class: train on these alone; see
            :func:`~lora_mnist.data.mistakes.read_mistakes`.
        mistakes_test: share of ``mistakes`` that is held out; from 0 to below 1.
        hardness: share of the draw of training images that follows how likely a network is to err
            on them, see :meth:`rate`; from 0, all images alike, to below 1.
        eval_batch_size: images a step in validation and test, per process.
        num_workers: processes that read images, for sets on the disk.
        mean: mean of the training pixels, on the scale 0 to 1, or one for each channel. ``None``:
            measured, see :meth:`measure`.
        std: standard deviation of the training pixels, on the same scale, or one for each channel.
            ``None``: measured.
        seed: of the order in which training images are drawn. It has a generator of its own:
            whatever else two runs differ in, they see the same batches. ``None`` takes the order
            that a plain ``DataLoader(shuffle=True)`` would take from torch's generator.
        augment: changes a batch of training images, uint8, (N, channels, height, width), before it
            is normalised, on the device; see :mod:`lora_mnist.data.augment`.

    Attributes:
        target: as it was given.
        targets: the classes of ``target`` by number, or ``None`` for all of them.
        color_order: of the channels that the network takes, "rgb" or "bgr"; the images themselves
            are red, green, blue. ``mean`` and ``std`` are in the network's order.
        draw_weights: how often each training image is drawn, from :meth:`rate`; ``None``: all
            alike. Set by whoever wants them.
        train_set: images of all classes to train on. val_set, test_set: to evaluate on. Filled by
            :meth:`setup`.
        mistake_sets: the mistakes to learn from, and those held out; empty where there are none.
        sha256: of all the images and labels that were read for them, by part, in hexadecimal.

    Raises:
        ValueError: if an argument is out of range.
    """

    train_set: Images
    val_set: Images
    test_set: Images
    color_order = "rgb"

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        channels: int,
        *,
        target: Target = None,
        batch_size: int = 10,
        replay: int = 0,
        mistakes: str | Path | None = None,
        mistakes_test: float = 0.2,
        hardness: float = 0.0,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        mean: Channelwise = None,
        std: Channelwise = None,
        seed: int | None = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.classes, self.channels = name, list(classes), channels
        self.target = target
        self.targets = class_numbers(target, self.classes)
        self.batch_size = checked_int("batch_size", batch_size, least=1)
        self.replay = checked_int("replay", replay)
        self.mistakes = None if mistakes is None else Path(str(mistakes)).expanduser()
        self.mistake_sets: list[ImageTensors] = []
        if replay and self.targets is None and mistakes is None:
            raise ValueError(f"replay={replay}: expected 0, since all classes are trained on")
        for key, share in {"hardness": hardness, "mistakes_test": mistakes_test}.items():
            if type(share) not in (int, float) or not 0 <= share < 1:
                raise ValueError(f"{key}={share}: expected a number from 0 to below 1")
        self.hardness, self.mistakes_test = hardness, mistakes_test
        self.eval_batch_size = checked_int("eval_batch_size", eval_batch_size, least=1)
        self.num_workers = checked_int("num_workers", num_workers)
        self.mean = _checked_channelwise("mean", mean, channels, least=0, most=1)
        self.std = _checked_channelwise("std", std, channels, least=1e-6, most=1e6)
        self.seed = None if seed is None else checked_int("seed", seed, most=2**63 - 1)
        self.augment = augment
        self.draw_weights: DrawWeights | None = None
        self.sha256: dict[str, str] = {}
        self._loader: TrainingLoader | None = None
        self._place: dict[str, Any] = {}

    @property
    def short_names(self) -> list[str]:
        """The classes as titles and loggers have them: 9 for torchvision's ``9 - nine``."""
        return [
            str(number) if name.startswith(f"{number} - ") else name
            for number, name in enumerate(self.classes)
        ]

    def training_images(self) -> tuple[Images, Images]:
        """All images to train on, whatever their class, and those held out for validation."""
        raise NotImplementedError

    def test_images(self) -> Images:
        """All images to test on."""
        raise NotImplementedError

    def read_picture(self, path: Path) -> Tensor:
        """A picture from elsewhere in the form of these images: (channels, height, width) uint8.

        Raises:
            ValueError: saying why, if the file cannot be used.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Select the images that ``stage`` ("fit", "validate" or "test") needs.

        Raises:
            ValueError: if there is nothing to train on, or ``replay`` asks for more images than
                there are.
        """
        self.measure()
        if self.mistakes is not None and not self.mistake_sets:
            self.mistake_sets = read_mistakes(
                self.mistakes, self.class_of_folder, self.read_picture, self.mistakes_test
            )
            for part, images in zip(("mistakes", "mistakes_test"), self.mistake_sets, strict=True):
                digest = hashlib.sha256(images.images.numpy().data)
                digest.update(images.labels.numpy().data)
                self.sha256[part] = digest.hexdigest()
        if stage == "test":
            self.test_set = self.test_images()
            return
        self.train_set, self.val_set = self.training_images()
        if self.mistake_sets:
            self.train_set = WithMistakes(self.train_set, self.mistake_sets[0])
        target, others = self.target_and_others()
        if not len(target):
            raise ValueError(f"target={self.target}: expected a class with training images")
        if self.replay > len(others):
            raise ValueError(
                f"replay={self.replay}: expected at most {len(others)}, the training images of "
                "other classes"
            )

    def target_and_others(self) -> Batch:
        """Indices into ``train_set``: of the images to learn from, and of those to replay.

        Images of ``target`` and of the other classes; or mistakes and all training images.
        """
        if self.mistake_sets:
            count = len(self.train_set) - len(self.mistake_sets[0])
            return torch.arange(count, len(self.train_set)), torch.arange(count)
        return split_by_class(self.train_set.labels, self.targets)

    def class_of_folder(self, name: str) -> int:
        """The class that a folder of pictures is named after: ``9``, ``nine`` or ``cat``.

        Raises:
            ValueError: if it is named after none.
        """
        try:
            numbers = class_numbers([int(name) if name.isdecimal() else name], self.classes) or []
        except ValueError as error:
            raise ValueError(
                f"expected folders named after classes, such as {self.short_names[0]}, not {name}"
            ) from error
        return numbers[0]

    def measure(self) -> None:
        """Set ``mean`` and ``std`` to those of the training images, where they are ``None``.

        All classes count. The numbers are rounded to four decimals, so that they give the same
        images when they are copied from where they were printed.

        Raises:
            ValueError: if all training pixels are alike.
        """
        if self.mean is not None and self.std is not None:
            return
        images = self.training_images()[0]
        total = squares = torch.zeros(self.channels, dtype=torch.int64)
        count = 0
        for indices in torch.split(torch.arange(len(images)), 64):
            pixels = images.__getitems__(indices.tolist())[0].transpose(0, 1).flatten(1).long()
            # Whole numbers: exact, whatever the order of summation.
            total = total + pixels.sum(1)
            squares = squares + pixels.square().sum(1)
            count += pixels.shape[1]
        mean = total.double() / count
        std = (squares.double() / count - mean**2).clamp(min=0).sqrt()
        if self.color_order == "bgr":
            mean, std = mean.flip(0), std.flip(0)
        if self.mean is None:
            self.mean = [round(value / 255, 4) for value in mean.tolist()]
        if self.std is None:
            self.std = [round(value / 255, 4) for value in std.tolist()]
            if not all(self.std):
                raise ValueError(
                    f"std={self.std}: the training images are all alike; expected other images"
                )
        if self.channels == 1:
            self.mean, self.std = (
                x[0] if isinstance(x, list) else x for x in (self.mean, self.std)
            )

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` in float32, in torchvision's order of operations.

        Args:
            images: uint8, shape (N, channels, height, width).
        """
        self.measure()
        if self.color_order == "bgr":
            images = images.flip(1)
        mean, std = (
            torch.tensor(x, device=images.device).view(-1, 1, 1) if isinstance(x, list) else x
            for x in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)  # type: ignore[arg-type]

    def batches(self, images: Images, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """``images`` in order, normalised, with their labels, on ``device``."""
        for indices in torch.split(torch.arange(len(images)), self.eval_batch_size):
            batch, labels = images.__getitems__(indices.tolist())
            yield self.normalise(batch.to(device)), labels.to(device)

    @torch.no_grad()
    def rate(self, net: nn.Module, device: torch.device) -> DrawWeights:
        """How often each training image, replayed or not, is drawn if ``net`` decides it.

        Nothing changes until the result is assigned to ``draw_weights``. The weights follow how
        likely ``net`` is to err on each image, as much as ``hardness`` says; see
        :func:`~lora_mnist.data.sampler.weigh`.

        Args:
            net: from normalised images to logits, in the mode that it is used in, on ``device``.
            device: where to compute.
        """
        target, others = self.target_and_others()
        chosen = torch.cat([target, others]) if self.replay else target
        errors = torch.zeros(len(self.train_set), dtype=torch.float64)
        for indices in torch.split(chosen, self.eval_batch_size):
            images, labels = self.train_set.__getitems__(indices.tolist())
            logits = net(self.normalise(images.to(device))).cpu()  # MPS has no float64
            right = logits.double().softmax(dim=1)
            errors[indices] = 1 - right.gather(1, labels.unsqueeze(1)).squeeze(1)
        weights = weigh(errors[target], self.hardness)
        if not self.replay:
            return DrawWeights(weights, None)
        labels = self.train_set.labels[others]
        return DrawWeights(weights, weigh(errors[others], self.hardness, labels))

    def require_shares(self, processes: int) -> None:
        """Refuse batches that ``processes`` cannot share equally.

        Raises:
            ValueError: if ``batch_size`` or ``replay`` is no multiple of ``processes``.
        """
        for name, size in {"batch_size": self.batch_size, "replay": self.replay}.items():
            if size % processes:
                raise ValueError(f"{name}={size}: expected a multiple of the {processes} processes")

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled batches, replay behind; a process of several gets its share of each batch."""
        trainer = self.trainer
        if self.seed is None:
            # What a plain DataLoader(shuffle=True) draws: for its workers, then for its sampler.
            _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
            replay_seed = torch.initial_seed()  # draws nothing
        else:
            seed = replay_seed = self.seed
        sampler = TrainingSampler(
            self.train_set.labels,
            *self.target_and_others(),
            self.batch_size,
            self.replay,
            seed=seed,
            replay_seed=replay_seed,
            weights=self.draw_weights,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
            repeat=bool(trainer and trainer.overfit_batches),  # type: ignore[attr-defined]
        )
        self._loader = TrainingLoader(self.train_set, sampler, trainer, self.num_workers)
        self._loader.load_state_dict(self._place)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """Where training has come in the images; Lightning keeps it in checkpoints."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out images in order; nothing where there are none."""
        return self._eval_dataloader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """The whole test set in order; behind it mistakes, those learnt and those held out."""
        sets = [self.test_set, *(images for images in self.mistake_sets if len(images))]
        return [self._eval_dataloader(images) for images in sets]

    def _eval_dataloader(self, images: Images) -> DataLoader[Batch]:
        sampler = None
        if self.trainer and self.trainer.world_size > 1:
            # Lightning's own choice pads the shards to equal length and would count images twice.
            sampler = UnrepeatedDistributedSampler(
                images,
                num_replicas=self.trainer.world_size,
                rank=self.trainer.global_rank,
                shuffle=False,
            )
        return DataLoader(
            images,
            self.eval_batch_size,
            sampler=sampler,
            collate_fn=default_convert,
            num_workers=self.num_workers,
            # Else it draws from torch's, and training would depend on how often it validates.
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is; augment it before, where the Trainer trains on it."""
        images, labels = batch
        if self.augment is not None and self.trainer and self.trainer.training:
            seed = torch.initial_seed() if self.seed is None else self.seed
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx
            images = augmented(images, self.augment, f"{seed} {step} {self.trainer.global_rank}")
        return self.normalise(images), labels


def class_numbers(target: Target, classes: Sequence[str]) -> list[int] | None:
    """The numbers of the class or classes that ``target`` names; ``None`` for all of them.

    Args:
        target: a class, or a list of classes, each by name or by number. A name goes before a
            number: with the classes 1, 10 and 2 the target 10 is the class of that name. ``nine``
            is the class ``9 - nine``, too.
        classes: the names, in the order of the labels.

    Raises:
        ValueError: if ``target`` names no class, or one twice.
    """
    if target is None:
        return None
    numbers = {name.removeprefix(f"{number} - "): number for number, name in enumerate(classes)}
    numbers |= {name: number for number, name in enumerate(classes)}
    found = []
    for one in target if isinstance(target, list | tuple) else [target]:
        number = numbers.get(str(one), one)
        if type(number) is not int or not 0 <= number < len(classes):
            named = (
                ", ".join(classes) if len(classes) <= 12 else f"{classes[0]}, ..., {classes[-1]}"
            )
            raise ValueError(
                f"target={target}: expected null, a class from 0 to {len(classes) - 1} or a list "
                f"of them, by number or by name ({named})"
            )
        found.append(number)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"target={target}: expected each class once, and at least one")
    return found


def checked_int(name: str, value: Any, least: int = 0, most: int = 2**31 - 1) -> int:
    """``value``, if it is an integer from ``least`` to ``most``.

    Raises:
        ValueError: naming the argument ``name``, if it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}={value}: expected an integer from {least} to {most}")
    return value


def _checked_channelwise(
    name: str, value: Any, channels: int, least: float, most: float
) -> Channelwise:
    """``value``, if it is ``None``, a number in the range, or one for each channel."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value]
    for number in values:
        if type(number) not in (int, float) or not least <= number <= most:
            raise ValueError(
                f"{name}={value}: expected numbers from {least:g} to {most:g}, or null"
            )
    if len(values) not in (1, channels):
        raise ValueError(f"{name}={value}: expected one number, or {channels}, one a channel")
    return values if len(values) > 1 else float(values[0])
