"""The base class of data sets: classes, images, and preprocessing."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from unicodedata import category

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from lora_mnist.data.images import Batch, Images, ImageSets
from lora_mnist.data.threads import ReadOnce
from lora_mnist.errors import report_group_errors, require, require_choice, require_number
from lora_mnist.progress import progress
from lora_mnist.project import import_from_here

#: A number, or one for each channel.
Channelwise = float | Sequence[float]


class Loader(DataLoader[Batch]):
    """torch's DataLoader, whose workers can import modules from the current folder."""

    def __iter__(self) -> Any:
        with import_from_here():  # workers start with a copy of sys.path
            return super().__iter__()


class ImageDataset:
    """Labeled images; a subclass reads them and prepares pictures.

    Images are uint8 until :meth:`normalize` makes them the input of a network. A label is an index
    into ``classes``. No image is read before :attr:`sets` is asked for.

    Its arguments are keys of ``data`` and ``prepare``, which ``configs/`` explains.
    """

    split_settings: Mapping[str, Any]  # the keys of data that set the split

    def __init__(
        self,
        name: str | int,
        classes: Sequence[str],
        channels: int,
        *,
        mean: Channelwise | None = None,  # None: measured when it is needed
        std: Channelwise | None = None,
        val_from: str = "train",
        eval_batch_size: int = 1000,
        num_workers: int = 0,
    ) -> None:
        is_name = type(name) in (str, int, float) and re.fullmatch(r"[^/\\\0]+", str(name))
        require(bool(is_name), "name", name, "a name without /, since files have it")
        for each in classes:
            can_be_printed = not any(category(character) == "Cc" for character in each)
            is_text = can_be_printed and "${" not in each  # which OmegaConf replaces in a record
            require(is_text, "classes", repr(each), "a name without control characters or ${")
        require(len({*classes}) == len(classes), "classes", classes, "each name once")
        require_choice("val_from", val_from, ["train", "test"])
        for key, value, least, most in (("mean", mean, 0, 1), ("std", std, 1e-6, 1e6)):
            numbers = value if isinstance(value, Sequence) else [value]
            if value is not None:
                require(len(numbers) in (1, channels), key, value, f"one number, or {channels}")
                for number in numbers:
                    require_number(key, number, least, most)
        self._mean, self._std = mean, std
        self.name, self.classes, self.channels = str(name), list(classes), channels
        self.val_from = val_from
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers

    @cached_property
    def sets(self) -> ImageSets:
        """All images, read once."""
        raise NotImplementedError

    def read_picture(self, picture: Path | Image.Image) -> Tensor:
        """Return a picture prepared like these images; raise ValueError if that fails."""
        raise NotImplementedError

    def preprocessing(self) -> dict[str, Any]:
        """Return values of ``prepare`` that reproduce this set's preprocessing."""
        mean, std = self.mean_and_std
        return {"mean": mean, "std": std}

    @cached_property
    def mean_and_std(self) -> tuple[Channelwise, Channelwise]:
        """Mean and deviation of pixels from 0 to 1, as set or as measured on training images."""
        mean, std = self._mean, self._std
        if mean is None or std is None:
            with report_group_errors("data"):
                expected = "mean and std, as in the network's training, since there are no "
                expected += "training images to measure"
                require(len(self.sets.train) > 0, "mean", None, expected)
            measured = measure_pixels(self.sets.train)
            mean = measured[0] if mean is None else mean
            std = measured[1] if std is None else std
        return mean, std

    def normalize(self, images: Tensor) -> Tensor:
        """Return ``(images / 255 - mean) / std``, float32; images are uint8, (N, C, H, W)."""
        mean, std = (
            torch.tensor(value, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for value in self.mean_and_std
        )
        return images.float().div_(255).sub_(mean).div_(std)

    def loader(
        self, images: Images, device: torch.device | str = "cpu", **options: Any
    ) -> DataLoader[Batch]:
        """Return a DataLoader, with its own generator unless ``options`` name one."""
        # With torch's global generator, a training would depend on evaluations before it.
        options = {"generator": torch.Generator(), **options}
        is_in_memory = images.reader is None or isinstance(images.reader, ReadOnce)
        workers = 0 if is_in_memory else self.num_workers  # they read files
        return Loader(
            images,
            collate_fn=default_convert,  # Images give whole batches
            num_workers=workers,
            persistent_workers=workers > 0,  # over all validations of a training
            pin_memory=torch.device(device).type == "cuda",
            **options,
        )

    def batches(
        self,
        images: Images,
        device: torch.device | str = "cpu",
        indices: Tensor | None = None,
        name: str = "images",
    ) -> Iterator[Batch]:
        """Yield normalized batches on ``device``, with labels, of all images or of ``indices``."""
        order = range(len(images)) if indices is None else indices.tolist()
        loader = self.loader(images, device, batch_size=self.eval_batch_size, sampler=order)
        for batch in progress(loader, name, len(loader)):
            # The copy of pinned memory is asynchronous.
            pixels, labels = (each.to(device, non_blocking=each.is_pinned()) for each in batch)
            yield self.normalize(pixels), labels

    def stack_pictures(
        self, pictures: Iterable[tuple[Tensor, int]], device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Yield pictures of :meth:`read_picture` in normalized batches of one size, with labels."""
        for _, group in groupby(pictures, lambda picture: picture[0].shape):
            while batch := list(islice(group, self.eval_batch_size)):
                images, labels = zip(*batch, strict=True)
                pixels = self.normalize(torch.stack(images).to(device))
                yield pixels, torch.tensor(labels).to(device)


def measure_pixels(images: Images) -> tuple[Channelwise, Channelwise]:
    """Return mean and standard deviation of each channel, or of a single one, to four decimals."""
    total = squares = torch.zeros(1, dtype=torch.int64)
    count = 0
    for indices in torch.split(torch.arange(len(images)), 64):
        pixels = images.take(indices.tolist())[0].transpose(0, 1).flatten(1).long()
        # Sums of whole numbers are exact, whatever their order.
        total = total + pixels.sum(1)
        squares = squares + pixels.square().sum(1)
        count += pixels.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp(min=0).sqrt()
    means = [round(value / 255, 4) for value in mean.tolist()]
    stds = [round(value / 255, 4) or 1.0 for value in std.tolist()]  # not 0, which divides
    return (means, stds) if len(means) > 1 else (means[0], stds[0])
