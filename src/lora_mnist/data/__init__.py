"""Images, in memory or on the disk: where they come from, and which are sampled next."""

from lora_mnist.data.datamodule import TEST_SETS as TEST_SETS
from lora_mnist.data.datamodule import ImageDataModule as ImageDataModule
from lora_mnist.data.folder import FolderDataModule as FolderDataModule
from lora_mnist.data.images import Batch as Batch
from lora_mnist.data.images import Images as Images
from lora_mnist.data.images import ImageTensors as ImageTensors
from lora_mnist.data.make import make_data as make_data
from lora_mnist.data.mnist import MNISTDataModule as MNISTDataModule
from lora_mnist.data.mnist import load_images as load_images
