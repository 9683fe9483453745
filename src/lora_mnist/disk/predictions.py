"""The predictions for each test image, kept beside results.json, so that a run can be drawn.

``predictions.safetensors`` takes about 0.4 MB for 10,000 images of 28 x 28.
"""

from collections.abc import Mapping
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

#: Arrays by name. The ``label`` of each of N images; the classes that ``base`` and, where there is
#: an adapter, ``adapted`` predict; ``base_probability`` and ``adapted_probability``: all (N,). The
#: first images of each kind, ``<kind>.images``: uint8, (K, channels, height, width).
Predictions = Mapping[str, NDArray[Any]]


def kinds_of(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """The places of images by kind, the highest probability first.

    The kinds are ``repaired`` and ``broken``, or ``wrong`` where there is only a base.
    """
    label, probability = predictions["label"], predictions["base_probability"]
    before = predictions["base"] == label
    masks = {"wrong": ~before}
    if "adapted" in predictions:
        after, probability = predictions["adapted"] == label, predictions["adapted_probability"]
        masks = {"repaired": after & ~before, "broken": before & ~after}
    order = np.argsort(-probability, kind="stable")
    return {kind: order[mask[order]] for kind, mask in masks.items()}


def write_predictions(tensors: "Mapping[str, Tensor]", images: "Images", folder: Path) -> None:
    """Write the file into a run's folder, whole or not at all.

    ``tensors`` are those of :data:`Predictions`, and ``index``: places in ``images``.
    """
    from lora_mnist.data.images import viewable  # here: a sweep's report needs no torch

    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
    index = arrays.pop("index")
    content = dict(arrays)
    for kind, places in kinds_of(arrays).items():
        pictures = viewable(images.take(index[places[:_SHOWN]].tolist())[0]).numpy()
        step = -(-max(pictures.shape[-2:]) // _LONGEST)
        content[f"{kind}.images"] = np.ascontiguousarray(pictures[..., ::step, ::step])
    with atomic_write(folder / PREDICTIONS_FILE) as path:
        path.write_bytes(save(content))


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions in a run's folder; ``None`` where there are none."""
    path = folder / PREDICTIONS_FILE
    return load_file(path) if path.exists() else None
