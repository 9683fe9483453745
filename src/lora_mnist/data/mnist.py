"""MNIST and its relatives."""

import hashlib
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from filelock import FileLock
from PIL.Image import Image
from torch import Tensor

from lora_mnist.data.dataset import Channelwise, ImageDataset, ImageSets
from lora_mnist.data.images import Batch, Images, sha256_of
from lora_mnist.data.pictures import open_picture, prepare
from lora_mnist.errors import PREPARE, one_line

#: Classes of ``torchvision.datasets``; mean and deviation of their training pixels, from 0 to 1.
DATASETS = {
    "MNIST": (0.1307, 0.3081),
    "FashionMNIST": (0.2860, 0.3530),
    "KMNIST": (0.1918, 0.3483),
}


class MNIST(ImageDataset):
    """A dataset of the MNIST family, with the training and test images that it comes with.

    ``configs/data/mnist.yaml`` explains the arguments; ``common`` are those of
    :class:`.ImageDataset`. The pictures have a form of their own, of which only mean and deviation
    may be others. ``ValueError``, if an argument is out of range.
    """

    def __init__(
        self,
        dataset: str = "MNIST",
        data_dir: str | Path = "data",
        *,
        name: str | None = None,
        val_size: int = 5000,
        mean: Channelwise | None = None,
        std: Channelwise | None = None,
        **common: Any,
    ) -> None:
        for key in PREPARE:
            if (value := common.pop(key, None)) is not None:
                raise ValueError(f"{key}={value}: expected null: {dataset} has a form of its own")
        if dataset not in DATASETS:
            raise ValueError(f"dataset={dataset}: expected one of {', '.join(DATASETS)}")
        names = getattr(torchvision.datasets, dataset).classes
        classes = [name.partition(" - ")[0] for name in names]  # "9 - nine" is called 9
        super().__init__(name or dataset.lower(), classes, 1, **common)
        usual_mean, usual_std = DATASETS[dataset]
        self.normalise_by(usual_mean if mean is None else mean, usual_std if std is None else std)
        self.dataset = dataset
        self.data_dir = Path(data_dir).expanduser()
        self.val_size = val_size

    @cached_property
    def sets(self) -> ImageSets:
        parts, sha256 = {}, {}
        for part in ("train", "test"):
            images, labels = load_images(self.dataset, self.data_dir, part == "train")
            parts[part] = Images(images, labels)
            sha256[part] = sha256_of(images, labels)
        whole = parts[self.val_from]
        count = len(whole)
        if type(self.val_size) is not int or not 0 <= self.val_size < count:
            raise ValueError(f"val_size={self.val_size}: expected an integer from 0 to {count - 1}")
        order = list(range(count))
        if self.val_from == "test":
            order.sort(key=lambda i: hashlib.sha256(str(i).encode()).digest())
        sizes = [count - self.val_size, self.val_size]
        rest, held_out = torch.split(torch.tensor(order), sizes)
        parts[self.val_from] = whole.subset(rest.sort().values)
        parts["val"] = whole.subset(held_out)
        return ImageSets(**parts, sha256=sha256, held_out={"val": self.val_from}, copies=None)

    def read_picture(self, picture: Path | Image) -> Tensor:
        """Any picture of one digit, in MNIST's form; see :mod:`lora_mnist.data.pictures`."""
        return prepare(open_picture(picture, upright=True))


def load_images(dataset: str, data_dir: str | Path, train: bool) -> Batch:
    """All training or all test images of a dataset, (N, 1, 28, 28) uint8, and labels, (N,) int64.

    ``dataset`` and ``data_dir`` are as for :class:`MNIST`. torchvision verifies, extracts and reads
    the files, and downloads those that are missing, in one process at a time. ``ValueError``, if it
    cannot.
    """
    root, family = Path(data_dir), getattr(torchvision.datasets, dataset)
    raw = root / dataset / "raw"
    with suppress(Exception):  # torchvision has no one class for what is missing or half-written
        images = family(root, train=train)
        return images.data.unsqueeze(1), images.targets
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            for archive in raw.glob("*.gz"):  # a kill may have left half of what is in it
                archive.with_suffix("").unlink(missing_ok=True)
            images = family(root, train=train, download=True)
    except Exception as error:
        raise ValueError(
            f"data_dir={root}: expected the official .gz files in {raw}; some are missing or "
            f"damaged, and no download is possible ({one_line(error)})"
        ) from error
    return images.data.unsqueeze(1), images.targets
