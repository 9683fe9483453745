"""MNIST and its relatives as a Lightning DataModule."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from lora_mnist.data.arguments import Channelwise, checked_folder, checked_int
from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.pictures import prepare, read_image
from lora_mnist.data.read import DATASETS, class_names, load_split
from lora_mnist.data.sampler import ImageTensors


class MNISTDataModule(ImageDataModule):
    """A dataset of the MNIST family, with the training and test images that it comes with.

    Args:
        dataset: class in ``torchvision.datasets``: MNIST, FashionMNIST, KMNIST or QMNIST.
        data_dir: folder that holds (or will hold) ``<dataset>/raw``.
        name: what files and results call the dataset; ``None``: ``mnist``, ``fashion_mnist``, ...
        val_size: the last so many training images are held out for validation.

    The other arguments, and what is raised, are those of :class:`ImageDataModule`.
    """

    def __init__(
        self,
        dataset: str = "MNIST",
        data_dir: str | Path = "data",
        *,
        name: str | None = None,
        target: int | str | Sequence[int | str] | None = None,
        batch_size: int = 10,
        replay: int = 0,
        hardness: float = 0.0,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        mean: Channelwise = 0.1307,
        std: Channelwise = 0.3081,
        seed: int | None = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(
            name or DATASETS.get(dataset, dataset),
            class_names(dataset),
            1,
            target=target,
            batch_size=batch_size,
            replay=replay,
            hardness=hardness,
            eval_batch_size=eval_batch_size,
            mean=mean,
            std=std,
            seed=seed,
            augment=augment,
        )
        self.dataset = dataset
        self.data_dir = checked_folder("data_dir", data_dir)
        self.val_size = checked_int("val_size", val_size, minimum=0)

    def prepare_data(self) -> None:
        """Extract the dataset, or download it, where that has not been done yet.

        Raises:
            ValueError: if the files are damaged or missing and cannot be downloaded.
        """
        load_split(self.dataset, self.data_dir, train=False)

    def training_images(self) -> tuple[ImageTensors, ImageTensors]:
        images, labels, self.sha256["train"] = load_split(self.dataset, self.data_dir, train=True)
        split = len(labels) - self.val_size
        if split < 1:
            raise ValueError(f"val_size={self.val_size}: expected less than {len(labels)}")
        return (
            ImageTensors(images[:split], labels[:split]),
            ImageTensors(images[split:], labels[split:]),
        )

    def test_images(self) -> ImageTensors:
        images, labels, self.sha256["test"] = load_split(self.dataset, self.data_dir, train=False)
        return ImageTensors(images, labels)

    def read_picture(self, path: Path) -> Tensor:
        """Any picture of one digit, brought to MNIST's form; see :mod:`lora_mnist.data.pictures`.

        Raises:
            ValueError: saying why, if the file cannot be used.
        """
        return prepare(read_image(path))
