"""Images: where they come from, how they are prepared, and which of them a training sees."""

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

#: The data sets, by the names that configurations and records have: no record may name another.
DATA_SETS = {f"lora_mnist.data.{each.__name__}": each for each in (MNIST, CIFAR, Folder)}
#: Those that have names of their own, and lie in ``data/`` unless a path is given.
PUBLISHED = [name for name, each in DATA_SETS.items() if issubclass(each, Published)]


def is_published(data: Mapping[str, Any]) -> bool:
    """Return whether a data set's arguments name one of these; without a name it is MNIST."""
    return data.get("_target_") in (None, *PUBLISHED)
