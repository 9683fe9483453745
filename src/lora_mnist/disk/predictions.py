"""The predictions for each test image, kept beside results.json: a table, and some pictures.

``predictions.csv`` is for anybody. ``pictures.safetensors`` has the first images of each kind, so
that a run can be drawn without its data: 0.05 MB for images of 28 x 28.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from lora_mnist.disk.files import atomic_write

if TYPE_CHECKING:  # a sweep's report needs no torch
    from torch import Tensor

    from lora_mnist.data import Images

PREDICTIONS_FILE = "predictions.csv"
PICTURES_FILE = "pictures.safetensors"

_MAX_SHOWN = 16  # images in a gallery
_MAX_SIDE = 64  # pixels: larger images are kept smaller

#: Arrays by name, each of shape (N,): the ``name`` of each of N images, its file or its number; its
#: ``label``; the classes that ``base`` and, where there is an adapter, ``adapted`` predict, and
#: ``base_probability`` and ``adapted_probability``, of these. On top of an earlier adapter ``base``
#: is what the repair is compared with. The first images of each kind, ``<kind>.images``: uint8,
#: (K, channels, height, width).
Predictions = Mapping[str, NDArray[Any]]


def _outcomes(predictions: Predictions) -> NDArray[Any]:
    """For each image ``right`` or ``wrong``; with an adapter ``repaired`` or ``broken`` as well."""
    before = predictions["base"] == predictions["label"]
    if "adapted" not in predictions:
        return np.where(before, "right", "wrong")
    after = predictions["adapted"] == predictions["label"]
    return np.select([before & after, after, before], ["right", "repaired", "broken"], "wrong")


def kinds_of(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """The places of ``repaired``, ``broken`` and ``wrong`` images, the most probable first.

    The probability is the adapted network's or, for ``broken`` ones, that of the base, which was
    right.
    """
    outcomes = _outcomes(predictions)
    sides = {"wrong": "base"}
    if "adapted" in predictions:
        sides = {"repaired": "adapted", "broken": "base", "wrong": "adapted"}
    kinds = {}
    for kind, side in sides.items():
        order = np.argsort(-predictions[f"{side}_probability"], kind="stable")
        kinds[kind] = order[outcomes[order] == kind]
    return kinds


def write_predictions(
    tensors: "Mapping[str, Tensor]",
    images: "Images",
    folder: Path,
    classes: Sequence[str],
    before: str = "base",
) -> None:
    """Write both files into a run's folder, each whole or not at all.

    ``tensors`` are those of :data:`Predictions` but for ``name``, and ``index``: places in
    ``images``. In the table classes have their names, and the base is called ``before``.
    """
    from lora_mnist.data.images import viewable  # here: a sweep's report needs no torch

    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
    index, names = arrays.pop("index").tolist(), images.names()
    columns: dict[str, Sequence[Any]] = {"index": [names[place] for place in index]}
    if names and isinstance(names[0], str):
        columns = {"file": columns["index"]}
    columns["label"] = [classes[number] for number in arrays["label"]]
    for side in ("base", "adapted"):
        if side in arrays:
            # As it is written, so that the order is the same for who reads it.
            arrays[f"{side}_probability"] = arrays[f"{side}_probability"].astype(float).round(6)
            title = before if side == "base" else side
            columns[title] = [classes[number] for number in arrays[side]]
            columns[f"{title}_probability"] = [f"{p:.6f}" for p in arrays[f"{side}_probability"]]
    columns["outcome"] = _outcomes(arrays).tolist()
    with (
        atomic_write(folder / PREDICTIONS_FILE) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    pictures = {}
    for kind, places in kinds_of(arrays).items():
        taken = viewable(images.take([index[place] for place in places[:_MAX_SHOWN]])[0]).numpy()
        step = -(-max(taken.shape[-2:]) // _MAX_SIDE)
        pictures[f"{kind}.images"] = np.ascontiguousarray(taken[..., ::step, ::step])
    with atomic_write(folder / PICTURES_FILE) as path:
        path.write_bytes(save(pictures))


def read_predictions(folder: Path, classes: Sequence[str]) -> Predictions | None:
    """The predictions in a run's folder; ``None`` where there are none."""
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        _, *titles = next(rows := csv.reader(file))
        name, *columns = zip(*rows, strict=True)
    numbers = {each: number for number, each in enumerate(classes)}
    arrays: dict[str, NDArray[Any]] = {"name": np.array(name)}
    for title, column in zip(titles[:-1], columns, strict=False):  # the outcome follows from these
        key = title.replace("before", "base")
        if title.endswith("_probability"):
            arrays[key] = np.array(column, dtype=float)
        else:
            arrays[key] = np.array([numbers[each] for each in column])
    return {**arrays, **load_file(folder / PICTURES_FILE)}
