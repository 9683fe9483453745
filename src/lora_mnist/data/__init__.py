"""Images as uint8, in memory or on the disk: where they come from, and which are drawn next."""

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.folder import FolderDataModule
from lora_mnist.data.mnist import MNISTDataModule, load_images
from lora_mnist.data.sampler import Batch, Images, ImageTensors

__all__ = [
    "Batch",
    "FolderDataModule",
    "ImageDataModule",
    "ImageTensors",
    "Images",
    "MNISTDataModule",
    "load_images",
]
