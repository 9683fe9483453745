"""Sets of images, in memory or on the disk, and what a classifier's images are.

What is known by which hash, all of them SHA-256:

- an image: ``Images.digests``, 8 bytes of that of its file, or of its pixels where it has none; so
  copies are found, and what base and adapter have learnt
- images and labels of a part, or paths, labels and digests of a folder: ``ImageSets.sha256``
- a picture of a folder of mistakes: that of its pixels, which holds some out (:mod:`.mistakes`)
- an image file's place in the order that holds images out: that of its path (:mod:`.split`)
- a base, or the digests that an adapter has learnt: :func:`.lora.base_state.fingerprint`
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from lora_mnist.errors import config_group, printable, require, require_number, require_one_of
from lora_mnist.progress import progress
from lora_mnist.project import importable

log = logging.getLogger(__name__)

#: Images, uint8, (B, channels, height, width), and labels, int64, (B,).
Batch = tuple[Tensor, Tensor]
#: Makes one image of another, such as a transform of torchvision.transforms.v2.
Augment = Callable[[Any], Any]
#: A number, or one for each channel.
Channelwise = float | Sequence[float]
#: Reads files, and augments what they show.
Read = Callable[[Sequence[Path], Augment | None], list[Tensor]]

_T = TypeVar("_T")
_Result = TypeVar("_Result")
#: Threads that read files, and how many each takes at once: with more threads, and with one file
#: at a time, those of small pictures wait for each other longer than they read.
_THREADS, _FILES_AT_ONCE = min(4, os.cpu_count() or 1), 8


@dataclass(eq=False)
class Images(Dataset[Batch]):
    """A set of N images, all of them files or none."""

    pixels: Sequence[Tensor | Path]  # of each, (channels, height, width), or its file
    labels: Tensor  # int64, shape (N,)
    names: Sequence[str | int] = ()  # files, below the data's folder, or numbers in the data set
    read: Read | None = None  # of files
    augment: Augment | None = None  # of each image that is taken
    digests: Tensor = field(default=None)  # type: ignore[assignment]  # of :func:`digests_of`

    def __post_init__(self) -> None:
        self.names = self.names or range(len(self))
        if self.digests is None:
            self.digests = digests_of(self.pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, and their labels."""
        images: list[Any] = [self.pixels[i] for i in indices]
        if self.read is not None:
            images = self.read(images, self.augment)
        elif self.augment is not None:
            images = list(map(self.augment, images))
        return torch.stack(images) if images else torch.empty(0), self.labels[list(indices)]

    __getitems__ = take  # the name by which DataLoader calls it

    def subset(self, indices: Tensor) -> "Images":
        """The images at ``indices``, int64, under the names that they have here."""
        order = indices.tolist()
        pixels, names = [self.pixels[i] for i in order], [self.names[i] for i in order]
        labels, digests = self.labels[indices], self.digests[indices]
        return replace(self, pixels=pixels, labels=labels, names=names, digests=digests)

    def without(self, is_left_out: Tensor) -> "Images":
        """These images but for some: ``is_left_out`` is bool, (N,)."""
        return self.subset((~is_left_out).nonzero()[:, 0]) if is_left_out.any() else self

    def without_learnt(
        self, learnt: Mapping[str, Tensor | None], name: str
    ) -> tuple["Images", dict[str, Any]]:
        """These images, called ``name``, without those that were learnt, and what is said of it."""
        is_learnt, owners = torch.zeros(len(self), dtype=torch.bool), []
        for owner, digests in learnt.items():
            if digests is not None and (known := torch.isin(self.digests, digests)).any():
                is_learnt |= known
                owners.append(owner)
        if not owners:
            return self, {}
        count, who = int(is_learnt.sum()), " and the ".join(owners)
        line = f"{count} of {len(self)} {name} are left out: the {who} "
        line += f"{'has' if len(owners) == 1 else 'have'} learnt them"
        return self.without(is_learnt), {"images": count, "of": len(self), "line": line}

    def followed_by(self, others: "Images") -> "Images":
        """These images, and after them ``others``, of the same size."""
        return Images(
            [*self.pixels, *others.pixels],
            torch.cat([self.labels, others.labels]),
            [*self.names, *others.names],
            self.read or others.read,
            digests=torch.cat([self.digests, others.digests]),
        )


class ReadOnce:
    """Reads each file when it is first asked for, as ``read`` does, and keeps its image."""

    def __init__(self, read: Read) -> None:
        self._read, self._images = read, dict[Path, Tensor]()

    def __call__(self, paths: Sequence[Path], augment: Augment | None = None) -> list[Tensor]:
        missing = [path for path in dict.fromkeys(paths) if path not in self._images]
        for path, (image,) in zip(missing, in_threads(self._read_one, missing), strict=True):
            self._images[path] = image
        images = [self._images[path] for path in paths]
        return list(map(augment, images)) if augment else images

    def _read_one(self, path: Path) -> list[Tensor]:
        return self._read([path], None)


@dataclass(frozen=True)
class ImageSets:
    """All images of a data set, by what they are for."""

    train: Images
    val: Images
    test: Images
    sha256: Mapping[str, str]  # by part, in hexadecimal; a folder has one, ``all``
    held_out: Mapping[str, str]  # for val and test: the part from which images were held out
    copies: int = 0  # images left out, since a part before theirs has them
    #: By part, the images left out since they were learnt: their number, that of all, and a line.
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def can_validate_on_test(self) -> bool:
        """Whether ``val_from=test`` would give others to validate on, from a part of its own."""
        return "test" not in self.held_out and self.held_out.get("val") != "test"

    def apart(self) -> "ImageSets":
        """These images without copies: of train, val and test, the first keeps an image."""
        seen, copies, rest = self.train.digests, [], []
        for images in (self.val, self.test):
            is_copy = torch.isin(images.digests, seen)
            copies += [images.names[i] for i in is_copy.nonzero()[:, 0].tolist()]
            rest.append(images.without(is_copy))
            seen = torch.cat([seen, images.digests])
        if copies:
            message = "%d images are left out, since another part has them: %s, ..."
            log.warning(message, len(copies), printable(copies[0]))
        return replace(self, val=rest[0], test=rest[1], copies=len(copies))

    def without_learnt(self, learnt: Mapping[str, Tensor | None]) -> "ImageSets":
        """These sets without images to validate and to test on that base or adapter has learnt."""
        val, of_val = self.val.without_learnt(learnt, "validation images")
        test, of_test = self.test.without_learnt(learnt, "test images")
        left_out = {part: about for part, about in (("val", of_val), ("test", of_test)) if about}
        return replace(self, val=val, test=test, left_out=left_out)


class Loader(DataLoader[Batch]):
    """torch's; its workers, where they are not forked, import what lies where the user stands."""

    def __iter__(self) -> Any:
        with importable():  # they begin with a copy of sys.path, here
            return super().__iter__()


class ImageDataset:
    """Images of classes: a subclass says where they come from and how a picture is prepared.

    Images are uint8 until :meth:`normalise` makes them the input of a network. A label is an index
    into ``classes``. No image is read before :attr:`sets` is asked for.

    Its arguments are keys of ``data`` and ``prepare``, which ``configs/`` explains.
    """

    split_settings: Mapping[str, Any]  # the values of data that say which images are held out

    def __init__(
        self,
        name: str | int,
        classes: Sequence[str],
        channels: int,
        *,
        val_from: str = "train",
        eval_batch_size: int = 1000,
        num_workers: int = 0,
    ) -> None:
        is_name = type(name) in (str, int, float) and re.fullmatch(r"[^/\\\0]+", str(name))
        require(bool(is_name), "name", name, "a name without /, since files have it")
        for each in classes:
            can_be_printed = not any(category(character) == "Cc" for character in each)
            require(can_be_printed, "classes", repr(each), "a name without control characters")
        require(len({*classes}) == len(classes), "classes", classes, "each name once")
        require_one_of("val_from", val_from, ["train", "test"])
        self.name, self.classes, self.channels = str(name), list(classes), channels
        self.val_from = val_from
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers

    @cached_property
    def sets(self) -> ImageSets:
        """All images, read once."""
        raise NotImplementedError

    def read_picture(self, picture: Path | Image.Image) -> Tensor:
        """A picture from elsewhere, in the form of these images; ``ValueError`` says why not."""
        raise NotImplementedError

    def preprocessing(self) -> dict[str, Any]:
        """The values of ``prepare`` by which another set prepares pictures as this one does."""
        mean, std = self.mean_and_std
        return {"mean": mean, "std": std}

    def normalise_by(self, mean: Channelwise | None, std: Channelwise | None) -> None:
        """Take ``mean`` and ``std``, if they fit; ``None``: it is measured when it is needed."""
        for key, value, least, most in (("mean", mean, 0, 1), ("std", std, 1e-6, 1e6)):
            if value is None:
                continue
            values = value if isinstance(value, Sequence) else [value]
            fits = len(values) in (1, self.channels)
            require(fits, key, value, f"one number, or {self.channels}")
            for each in values:
                require_number(key, each, least, most)
        self._mean, self._std = mean, std

    @cached_property
    def mean_and_std(self) -> tuple[Channelwise, Channelwise]:
        """Of the pixels, on the scale 0 to 1: as they are set, or of the training images."""
        mean, std = self._mean, self._std
        if mean is None or std is None:
            with config_group("data"):
                expected = "mean and std, as in the network's training, since there are no "
                expected += "training images to measure"
                require(len(self.sets.train) > 0, "mean", None, expected)
            measured = measured_pixels(self.sets.train)
            mean = measured[0] if mean is None else mean
            std = measured[1] if std is None else std
        return mean, std

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` in float32, of uint8, (N, channels, height, width)."""
        mean, std = (
            torch.tensor(value, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for value in self.mean_and_std
        )
        return images.float().div_(255).sub_(mean).div_(std)

    def loader(
        self, images: Images, device: torch.device | str = "cpu", **options: Any
    ) -> DataLoader[Batch]:
        """torch's DataLoader, with a generator of its own, unless ``options`` name one."""
        # With torch's own, a training would depend on what was evaluated before it.
        options = {"generator": torch.Generator(), **options}
        is_in_memory = images.read is None or isinstance(images.read, ReadOnce)
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
        """``images``, or those at ``indices``, in order, normalised, with labels, on ``device``."""
        order = range(len(images)) if indices is None else indices.tolist()
        loader = self.loader(images, device, batch_size=self.eval_batch_size, sampler=order)
        for batch in progress(loader, name, len(loader)):
            # Nobody waits for the copy of pinned memory.
            pixels, labels = (each.to(device, non_blocking=each.is_pinned()) for each in batch)
            yield self.normalise(pixels), labels

    def stacked(
        self, pictures: Iterable[tuple[Tensor, int]], device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Pictures of :meth:`read_picture` in batches of one size, normalised, with labels."""
        for _, group in groupby(pictures, lambda picture: picture[0].shape):
            while batch := list(islice(group, self.eval_batch_size)):
                images, labels = zip(*batch, strict=True)
                pixels = self.normalise(torch.stack(images).to(device))
                yield pixels, torch.tensor(labels).to(device)


def measured_pixels(images: Images) -> tuple[Channelwise, Channelwise]:
    """Mean and standard deviation of each channel, or of the only one, to four decimals."""
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


def in_threads(function: Callable[[_T], _Result], items: Sequence[_T]) -> Iterator[_Result]:
    """``function`` of each item, in order: Pillow lets other threads run while it decodes."""
    tasks = [items[i : i + _FILES_AT_ONCE] for i in range(0, len(items), _FILES_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for results in pool.map(lambda task: list(map(function, task)), tasks):
            yield from results


def digests_of(images: Sequence[Tensor | Path | bytes]) -> Tensor:
    """Eight bytes of the SHA-256 of each image's file or, in memory, of its pixels: int64, (N,)."""
    digests = []
    for image in images:
        content: Any = image.contiguous().numpy() if isinstance(image, Tensor) else image
        if isinstance(image, Path):
            content = image.read_bytes()
        digests.append(hashlib.sha256(content).digest()[:8])
    return torch.from_numpy(numpy.frombuffer(b"".join(digests), "<i8").astype(numpy.int64))


def sha256_of(images: Tensor, labels: Tensor) -> str:
    """The SHA-256 of images and labels (int64), in hexadecimal."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def viewable(images: Tensor) -> Tensor:
    """Images as uint8, to be looked at; the floats of a transform are stretched from 0 to 255."""
    if not images.is_floating_point():
        return images
    low = images.amin((-3, -2, -1), keepdim=True)
    high = images.amax((-3, -2, -1), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-9) * 255).to(torch.uint8)
