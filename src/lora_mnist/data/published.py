"""The base class of published data sets, whose files are found or downloaded."""

import hashlib
from contextlib import suppress
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lora_mnist.data.dataset import Channelwise, ImageDataset
from lora_mnist.data.digests import hash_images
from lora_mnist.data.images import Batch, Images, ImageSets
from lora_mnist.errors import PREPARE, ArgumentError, one_line, require
from lora_mnist.project import expand_path


class Published(ImageDataset):
    """Training and test images in published files; a subclass reads and fetches them.

    ``statistics`` are mean and deviation of the training images, from 0 to 1.
    """

    folder: Path  #: the data set's own, below ``data_dir``
    expected: str  #: what has to lie where, for messages

    def __init__(
        self,
        dataset: str,
        classes: list[str],
        channels: int,
        statistics: tuple[Channelwise, Channelwise],
        data_dir: str | Path,
        *,
        download: bool = True,
        name: str | int | None = None,
        val_size: int = 5000,
        mean: Channelwise | None = None,
        std: Channelwise | None = None,
        **common: Any,
    ) -> None:
        for key in PREPARE:
            if (value := common.pop(key, None)) is not None:
                raise ArgumentError(
                    key, value, f"expected null; {dataset} has a fixed preprocessing"
                )
        common["mean"] = statistics[0] if mean is None else mean
        common["std"] = statistics[1] if std is None else std
        super().__init__(dataset.lower() if name is None else name, classes, channels, **common)
        self.dataset = dataset
        self.data_dir, self.download = expand_path(data_dir), download
        self.val_size = val_size
        self.split_settings = {"val_size": val_size, "val_from": self.val_from}

    def read_split(self, train: bool) -> Batch:
        """Read training or test images, uint8, and labels; OSError or ValueError if broken."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Put the files into :attr:`folder`: from an archive in it, or by download."""
        raise NotImplementedError

    def load(self, train: bool) -> Batch:
        """Return training or test images, and labels; ``download`` makes and fills the folder."""
        with suppress(OSError, ValueError):
            return self.read_split(train)
        expected = f"expected {self.expected}; some are missing or damaged"
        if not self.download:
            expected += "; to download them, set this key, and not data.download=false"
            raise ArgumentError("data_dir", self.data_dir, expected)
        lock = self.data_dir / ".lock"
        new = [each for each in (self.folder, *self.folder.parents) if not each.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                self.fetch()
                return self.read_split(train)
        except (OSError, ValueError, RuntimeError, HTTPException) as error:
            with suppress(OSError):
                if self.data_dir in new:
                    lock.unlink()
                for folder in new:  # where they are empty
                    folder.rmdir()
            expected += f", and they cannot be downloaded ({one_line(error)})"
            raise ArgumentError("data_dir", self.data_dir, expected) from error

    @cached_property
    def sets(self) -> ImageSets:
        splits, sha256 = {}, {}
        for split in ("train", "test"):
            images, labels = self.load(split == "train")
            splits[split] = Images(list(images), labels)
            sha256[split] = hash_images(images, labels)
        whole = splits[self.val_from]
        count = len(whole)
        is_count = type(self.val_size) is int and 0 <= self.val_size < count
        require(is_count, "val_size", self.val_size, f"an integer from 0 to {count - 1}")
        order = list(range(count))
        if self.val_from == "test":
            order.sort(key=lambda i: hashlib.sha256(str(i).encode()).digest())
        sizes = [count - self.val_size, self.val_size]
        rest, val = torch.split(torch.tensor(order), sizes)
        splits[self.val_from] = whole.subset(rest.sort().values)
        splits["val"] = whole.subset(val)
        held_out = {"val": self.val_from}
        return ImageSets(
            splits["train"], splits["val"], splits["test"], sha256, held_out
        ).without_duplicates()
