"""CIFAR-10 and CIFAR-100 in their binary version: bytes of labels and pixels, no pickle.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.utils import download_url, extract_archive

from lora_mnist.data.dataset import Channelwise
from lora_mnist.data.images import Batch
from lora_mnist.data.pictures import Preprocessing, open_picture
from lora_mnist.data.published import Published
from lora_mnist.errors import require_choice


class _Version(NamedTuple):
    """The binary version of a data set, as its authors publish it."""

    archive: str
    md5: str  # of the archive
    folder: str  # in the archive
    train: list[str]  # the files of the training images
    test: list[str]
    label_bytes: int  # before an image's pixels; the last one is its class
    statistics: tuple[Channelwise, Channelwise]  # mean and deviation of the pixels
    classes: str
    images: tuple[int, int] = (10_000, 50_000)  # numbers of test and training images


_URL = "https://www.cs.toronto.edu/~kriz/"
DATASETS = {
    "CIFAR10": _Version(
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        [f"data_batch_{number}.bin" for number in range(1, 6)],
        ["test_batch.bin"],
        1,
        ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        "airplane automobile bird cat deer dog frog horse ship truck",
    ),
    "CIFAR100": _Version(
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        ["train.bin"],
        ["test.bin"],
        2,
        ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
        "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
        "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house "
        "kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
        "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal "
        "shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper "
        "table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
        "willow_tree wolf woman worm",
    ),
}
_SIZE = (32, 32)


class CIFAR(Published):
    """CIFAR-10 or CIFAR-100; ``options`` are arguments of :class:`.Published`."""

    def __init__(
        self, dataset: str = "CIFAR10", data_dir: str | Path = "data", **options: Any
    ) -> None:
        require_choice("dataset", dataset, DATASETS)
        self.version = DATASETS[dataset]
        classes, statistics = self.version.classes.split(), self.version.statistics
        super().__init__(dataset, classes, 3, statistics, data_dir, **options)
        self.folder = self.data_dir / self.version.folder
        self.expected = f"{self.version.archive} of {_URL} there, or its files in {self.folder}"

    def read_split(self, train: bool) -> Batch:
        skipped = self.version.label_bytes
        size, content = skipped + 3 * _SIZE[0] * _SIZE[1], bytearray()
        for name in self.version.train if train else self.version.test:
            of_file, sha256 = (self.folder / name).read_bytes(), self._sha256_file(name)
            if sha256.exists() and sha256.read_text() != hashlib.sha256(of_file).hexdigest():
                raise ValueError(f"{self.folder / name} has changed since it was unpacked")
            content += of_file
        if len(content) != size * self.version.images[train]:
            raise ValueError(f"{self.folder} has files that were cut")
        rows = torch.frombuffer(content, dtype=torch.uint8).view(-1, size)
        labels = rows[:, skipped - 1].long()
        return rows[:, skipped:].reshape(-1, 3, *_SIZE).contiguous(), labels

    def fetch(self) -> None:
        archive = self.version.archive
        download_url(_URL + archive, self.data_dir, md5=self.version.md5)
        # A kill leaves no partial file.
        with TemporaryDirectory(dir=self.data_dir) as folder:
            extract_archive(str(self.data_dir / archive), folder)
            for file in Path(folder, self.version.folder).iterdir():
                sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
                self._sha256_file(file.name).write_text(sha256)
                file.replace(self.folder / file.name)

    def _sha256_file(self, name: str) -> Path:
        """Return the path of the file that has the SHA-256 of an unpacked file."""
        return self.folder / f"{name}.sha256"

    def read_picture(self, picture: Path | Image.Image) -> Tensor:
        prepare = Preprocessing(3, _SIZE)
        return prepare(open_picture(picture))
