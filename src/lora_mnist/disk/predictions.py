"""The predictions for each test image, kept beside results.json, so that a run can be drawn.

``predictions.safetensors`` holds a tensor for each field of :class:`Predictions`, and the images of
its galleries: about 0.4 MB for 10,000 images of 28 x 28.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lora_mnist.disk.files import atomic_write

if TYPE_CHECKING:  # a sweep's report needs no torch
    from torch import Tensor

    from lora_mnist.data import Images

PREDICTIONS_FILE = "predictions.safetensors"

_SHOWN = 16  # images in a gallery
_LONGEST = 64  # pixels: larger images are kept smaller

Array = NDArray[Any]


@dataclass(frozen=True)
class Gallery:
    """Some images of one kind."""

    index: Array  # their places among the predictions, shape (K,)
    images: Array  # uint8, shape (K, channels, height, width)
    total: int  # how many there are of the kind


@dataclass(frozen=True)
class Predictions:
    """Labels of N test images, and the predicted classes with their probabilities, all (N,).

    ``galleries`` has images by kind, the highest probability first: ``repaired`` and ``broken``, or
    ``wrong`` where there is only a base.
    """

    label: Array
    base: Array
    base_probability: Array
    adapted: Array | None = None
    adapted_probability: Array | None = None
    galleries: dict[str, Gallery] = field(default_factory=dict)

    def kinds(self) -> dict[str, Array]:
        """Which images were repaired and which broken, or which are wrong: masks, shape (N,)."""
        before = self.base == self.label
        if self.adapted is None:
            return {"wrong": ~before}
        after = self.adapted == self.label
        return {"repaired": after & ~before, "broken": before & ~after}


def write_predictions(tensors: "Mapping[str, Tensor]", images: "Images", folder: Path) -> None:
    """Write the file into a run's folder, whole or not at all.

    Args:
        tensors: the fields of :class:`Predictions`, and ``index``: places in ``images``.
        images: the test set.
        folder: the run's folder.
    """
    from lora_mnist.data.images import viewable  # here: a sweep's report needs no torch

    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
    places = arrays.pop("index")
    probability = arrays.get("adapted_probability", arrays["base_probability"])
    content = dict(arrays)
    for kind, mask in Predictions(**arrays).kinds().items():
        chosen = np.flatnonzero(mask)
        chosen = chosen[np.argsort(-probability[chosen], kind="stable")][:_SHOWN]
        pictures = viewable(images.take(places[chosen].tolist())[0]).numpy()
        step = -(-max(pictures.shape[-2:]) // _LONGEST)
        content[f"{kind}.index"] = chosen
        content[f"{kind}.images"] = np.ascontiguousarray(pictures[..., ::step, ::step])
    with atomic_write(folder / PREDICTIONS_FILE) as path:
        save_file(content, path)


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions in a run's folder; ``None`` where there are none."""
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    content = load_file(path)
    fields: dict[str, Any] = {key: array for key, array in content.items() if "." not in key}
    predictions = Predictions(**fields)
    for kind, mask in predictions.kinds().items():
        index, images = content[f"{kind}.index"], content[f"{kind}.images"]
        predictions.galleries[kind] = Gallery(index, images, int(mask.sum()))
    return predictions
