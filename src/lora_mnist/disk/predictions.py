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
from safetensors.numpy import load_file, save

from lora_mnist.disk.files import atomic_write

if TYPE_CHECKING:  # a sweep's report needs no torch
    from torch import Tensor

    from lora_mnist.data import Images

PREDICTIONS_FILE = "predictions.safetensors"

_SHOWN = 16  # images in a gallery
_LONGEST = 64  # pixels: larger images are kept smaller

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Labels of N test images, and the predicted classes with their probabilities, all (N,).

    ``galleries`` has the first images of each kind, uint8, (K, channels, height, width).
    """

    label: Array
    base: Array
    base_probability: Array
    adapted: Array | None = None
    adapted_probability: Array | None = None
    galleries: dict[str, Array] = field(default_factory=dict)

    def kinds(self) -> dict[str, Array]:
        """The places of images by kind, the highest probability first.

        The kinds are ``repaired`` and ``broken``, or ``wrong`` where there is only a base.
        """
        before, probability = self.base == self.label, self.base_probability
        masks = {"wrong": ~before}
        if self.adapted is not None and self.adapted_probability is not None:
            after, probability = self.adapted == self.label, self.adapted_probability
            masks = {"repaired": after & ~before, "broken": before & ~after}
        order = np.argsort(-probability, kind="stable")
        return {kind: order[mask[order]] for kind, mask in masks.items()}


def write_predictions(tensors: "Mapping[str, Tensor]", images: "Images", folder: Path) -> None:
    """Write the file into a run's folder, whole or not at all.

    ``tensors`` are the fields of :class:`Predictions`, and ``index``: places in ``images``.
    """
    from lora_mnist.data.images import viewable  # here: a sweep's report needs no torch

    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
    index = arrays.pop("index")
    content = dict(arrays)
    for kind, places in Predictions(**arrays).kinds().items():
        pictures = viewable(images.take(index[places[:_SHOWN]].tolist())[0]).numpy()
        step = -(-max(pictures.shape[-2:]) // _LONGEST)
        content[f"{kind}.images"] = np.ascontiguousarray(pictures[..., ::step, ::step])
    with atomic_write(folder / PREDICTIONS_FILE) as path:
        path.write_bytes(save(content))


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions in a run's folder; ``None`` where there are none."""
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    content = load_file(path)
    fields: dict[str, Any] = {key: array for key, array in content.items() if "." not in key}
    predictions = Predictions(**fields)
    for kind in predictions.kinds():
        predictions.galleries[kind] = content[f"{kind}.images"]
    return predictions
