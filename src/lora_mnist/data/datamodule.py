"""Images in memory, as a Lightning DataModule: the part that does not care where they come from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lora_mnist.data.arguments import (
    MOST_SEED,
    Channelwise,
    checked_int,
    checked_mean,
    checked_share,
    checked_std,
    resolve_target,
)
from lora_mnist.data.augment import augmented
from lora_mnist.data.normalise import mean_and_std, normalise
from lora_mnist.data.read import Batch
from lora_mnist.data.sampler import (
    DrawWeights,
    ImageTensors,
    Order,
    Place,
    WithReplay,
    plain_seed,
    weigh,
)


class ImageDataModule(LightningDataModule):
    """Images of classes: filtered by class for training, whole for evaluation.

    Where they come from is a subclass's business: it overrides :meth:`prepare_data`,
    :meth:`training_images`, :meth:`test_images` and :meth:`read_picture`. Images stay uint8 in
    memory and in the loader; :meth:`on_after_batch_transfer` normalises each batch on the device,
    ``(pixel / 255 - mean) / std``.

    Args:
        name: what files and results call the dataset.
        classes: what the classes are called; a label is an index into this list.
        channels: of the images.
        target: train on this class, or these classes, alone, each by number or by name; ``None``
            for all of them.
        batch_size: training images a step, over all processes together.
        replay: images of the other classes that accompany each batch, over all processes together,
            evenly over the classes; 0 where ``target`` is ``None``.
        hardness: share of the draw of training images that follows how likely a network is to err
            on them, see :meth:`rate`; from 0, all images alike, to below 1.
        eval_batch_size: images a step in validation and test, per process.
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
        draw_weights: how often each training image is drawn, from :meth:`rate`; ``None``: all
            alike. Set by whoever wants them.
        order: of the images, from the last :meth:`train_dataloader`; it knows the place in them.
        start: the place to go on from; ``None``: the beginning. Set by whoever goes on with a run.
        train_set: images to learn from. replay_set: images of the other classes, where ``replay``
            asks for them. val_set, test_set: images of all classes. Filled by :meth:`setup`.
        sha256: of all the images and labels that were read for them, by part, in hexadecimal.

    Raises:
        ValueError: if an argument is out of range.
    """

    train_set: ImageTensors
    replay_set: ImageTensors
    val_set: ImageTensors
    test_set: ImageTensors

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        channels: int,
        *,
        target: int | str | Sequence[int | str] | None,
        batch_size: int,
        replay: int,
        hardness: float,
        eval_batch_size: int,
        mean: Channelwise,
        std: Channelwise,
        seed: int | None,
        augment: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__()
        self.name, self.classes, self.channels = name, list(classes), channels
        self.target = target
        self.targets = resolve_target(target, self.classes)
        self.batch_size = checked_int("batch_size", batch_size, minimum=1)
        self.replay = checked_int("replay", replay, minimum=0)
        if replay and self.targets is None:
            raise ValueError(f"replay={replay}: expected 0, since all classes are trained on")
        self.hardness = checked_share("hardness", hardness)
        self.eval_batch_size = checked_int("eval_batch_size", eval_batch_size, minimum=1)
        self.mean = checked_mean(mean, channels)
        self.std = checked_std(std, channels)
        self.seed = None if seed is None else checked_int("seed", seed, 0, MOST_SEED)
        if augment is not None and not callable(augment):
            raise ValueError(f"augment={augment}: expected null or a transform of a batch")
        self.augment = augment
        self.draw_weights: DrawWeights | None = None
        self.start: Place | None = None
        self.order: Order | None = None
        self.sha256: dict[str, str] = {}

    @property
    def short_names(self) -> list[str]:
        """The classes as titles and loggers have them: 9 for torchvision's ``9 - nine``."""
        return [
            str(number) if name.startswith(f"{number} - ") else name
            for number, name in enumerate(self.classes)
        ]

    def training_images(self) -> tuple[ImageTensors, ImageTensors]:
        """All images to train on, whatever their class, and those held out for validation."""
        raise NotImplementedError

    def test_images(self) -> ImageTensors:
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
        if stage == "test":
            self.test_set = self.test_images()
            return
        training, self.val_set = self.training_images()
        images, labels = training.images, training.labels
        if self.targets is not None:
            chosen = torch.isin(labels, torch.tensor(self.targets))
            if self.replay:
                self.replay_set = ImageTensors(images[~chosen], labels[~chosen])
                self._check_replay()
            images, labels = images[chosen], labels[chosen]
        if len(labels) == 0:
            raise ValueError(f"target={self.target}: expected a class with training images")
        self.train_set = ImageTensors(images, labels)

    def _check_replay(self) -> None:
        if self.replay > (count := len(self.replay_set)):
            raise ValueError(
                f"replay={self.replay}: expected at most {count}, the training images of other "
                "classes"
            )

    def measure(self) -> None:
        """Set ``mean`` and ``std`` to those of the training images, where they are ``None``.

        All classes count. The numbers are rounded to four decimals, so that they give the same
        images when they are copied from where they were printed. :meth:`setup` calls this; without
        it, the first batch does.

        Raises:
            ValueError: if all training pixels are alike.
        """
        if self.mean is not None and self.std is not None:
            return
        mean, std = mean_and_std(self.training_images()[0].images)
        if self.std is None and not all(std):
            raise ValueError(f"std={std}: the training images are all alike; expected other images")
        self.mean = checked_mean(mean, self.channels) if self.mean is None else self.mean
        self.std = checked_std(std, self.channels) if self.std is None else self.std

    @torch.no_grad()
    def rate(self, net: nn.Module) -> DrawWeights:
        """How often each training image, replayed or not, is drawn if ``net`` decides it.

        Nothing changes until the result is assigned to ``draw_weights``. The weights follow how
        likely ``net`` is to err on each image, as much as ``hardness`` says; see
        :func:`~lora_mnist.data.sampler.weigh`.

        Args:
            net: from normalised images to logits, in the mode that it is used in.

        Returns:
            Weights of the images to learn from, and of those to replay.
        """
        target = weigh(self._errors(net, self.train_set), self.hardness)
        if not self.replay:
            return DrawWeights(target, None)
        errors = self._errors(net, self.replay_set)
        return DrawWeights(target, weigh(errors, self.hardness, self.replay_set.labels))

    def _errors(self, net: nn.Module, images: ImageTensors) -> Tensor:
        """``1 - softmax(z)_y`` of each image's logits ``z`` and label ``y``; float64, (N,)."""
        device = next(net.parameters(), torch.empty(0)).device
        splits = [torch.split(t, self.eval_batch_size) for t in (images.images, images.labels)]
        errors = []
        for pixels, labels in zip(*splits, strict=True):
            batch = (pixels.to(device), labels.to(device))
            pixels, labels = self.on_after_batch_transfer(batch, 0)
            right = net(pixels).double().softmax(dim=1).gather(1, labels.unsqueeze(1))
            errors.append(1 - right.squeeze(1).cpu())
        return torch.cat(errors)

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
        share = {"rank": rank, "processes": processes}
        size = self.batch_size_per_process(processes)
        weights, replay_weights = self.draw_weights or (None, None)
        # initial_seed draws nothing: the order of the target's images stays as without replay.
        seed = torch.initial_seed() if self.seed is None else self.seed
        start = self.start or Place(plain_seed() if self.seed is None else self.seed)
        images, skip = self._where_used(self.train_set), start.batch * size
        self.order = Order(len(images), start.seed, weights, start.shuffles, skip, **share)
        if self.replay:
            others, skip = self._where_used(self.replay_set), start.batches
            images = WithReplay(images, others, self.replay, seed, replay_weights, skip, **share)
        return DataLoader(images, batch_size=size, sampler=self.order, collate_fn=_as_indexed)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out images in order; nothing where there are none."""
        return self._eval_dataloader(self.val_set) if len(self.val_set) else []

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
        settings: Any = {"sampler": sampler, "collate_fn": _as_indexed}
        # Else a loader draws from torch's, and training would depend on how often it validates.
        settings["generator"] = torch.Generator()
        return DataLoader(self._where_used(dataset), self.eval_batch_size, **settings)

    def _where_used(self, images: ImageTensors) -> ImageTensors:
        """On the Trainer's device, so that no batch has to be copied there."""
        return images.to(self.trainer.strategy.root_device) if self.trainer else images

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is; augment it before, where the Trainer trains on it."""
        images, labels = batch
        if self.augment is not None and self.trainer and self.trainer.training:
            seed = torch.initial_seed() if self.seed is None else self.seed
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx
            images = augmented(images, self.augment, f"{seed} {step} {self.trainer.global_rank}")
        return self.normalise(images), labels

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std``: float32, of the shape of ``images``, which are uint8."""
        self.measure()
        return normalise(images, self.mean, self.std)


def _as_indexed(batch: Any) -> Any:
    """Collate function for batches that were indexed whole."""
    return batch
