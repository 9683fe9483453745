"""Images in memory as uint8: where they come from, and which of them is drawn next."""

from typing import TYPE_CHECKING, Any

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.mnist import MNISTDataModule, load_images
from lora_mnist.data.sampler import Batch, DrawWeights, ImageTensors

if TYPE_CHECKING:
    from lora_mnist.data.folder import FolderDataModule

__all__ = [
    "Batch",
    "DrawWeights",
    "FolderDataModule",
    "ImageDataModule",
    "ImageTensors",
    "MNISTDataModule",
    "load_images",
]


def __getattr__(name: str) -> Any:
    """Import what reads folders on first use: who trains on MNIST does not wait for it."""
    if name != "FolderDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lora_mnist.data.folder import FolderDataModule

    return FolderDataModule
