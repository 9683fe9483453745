"""Images: data sets, preprocessing, splits, and the plan of a training."""

from collections.abc import Mapping
from typing import Any

from lora_mnist.data.cifar import CIFAR as CIFAR
from lora_mnist.data.dataset import ImageDataset as ImageDataset
from lora_mnist.data.folder import Folder as Folder
from lora_mnist.data.images import Images as Images
from lora_mnist.data.images import ImageSets as ImageSets
from lora_mnist.data.mnist import MNIST as MNIST
from lora_mnist.data.pictures import Shift as Shift
from lora_mnist.data.published import Published as Published

#: The data sets by their names in configurations and records; a record may name no other.
DATA_SETS = {f"lora_mnist.data.{each.__name__}": each for each in (MNIST, CIFAR, Folder)}
#: Published data sets; they have fixed names, and their files are in ``data/`` by default.
PUBLISHED = [name for name, each in DATA_SETS.items() if issubclass(each, Published)]


def is_published(data: Mapping[str, Any]) -> bool:
    """Return whether a data set's arguments name one of these; without a name it is MNIST."""
    return data.get("_target_") in (None, *PUBLISHED)
