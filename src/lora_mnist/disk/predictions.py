"""The predictions for each test image: one table, and ``predictions.csv`` for anybody to read."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora_mnist.disk.files import atomic_write

if TYPE_CHECKING:  # a sweep's report needs no torch
    from torch import Tensor

PREDICTIONS_FILE = "predictions.csv"

#: A table: columns by name, each an array of shape (N,) for N images. ``index`` is the place in the
#: set of images, ``label`` a class by number. So is ``before``, the base's prediction, with its
#: ``before_probability``; where there is an adapter, ``after`` and ``after_probability`` are those
#: of the base with it. ``outcome`` is ``right`` or ``wrong``; with an adapter also ``repaired``,
#: wrong before and right after, or ``broken``, the reverse.
Predictions = Mapping[str, NDArray[Any]]


def predictions_table(tensors: "Mapping[str, Tensor]") -> Predictions:
    """The table of the predictions of a network, with columns as ``Evaluation`` has them."""
    table = {"index": tensors["index"].cpu().numpy(), "label": tensors["label"].cpu().numpy()}
    for key, side in (("base", "before"), ("adapted", "after")):
        if key in tensors:
            table[side] = tensors[key].cpu().numpy()
            probability = tensors[f"{key}_probability"].cpu().numpy().astype(float)
            table[f"{side}_probability"] = probability.round(6)  # as written, to sort by
    before = table["before"] == table["label"]
    table["outcome"] = np.where(before, "right", "wrong")
    if "after" in table:
        after = table["after"] == table["label"]
        table["outcome"] = np.select(
            [before & after, ~before & after, before & ~after],
            ["right", "repaired", "broken"],
            "wrong",
        )
    return table


def write_predictions(
    table: Predictions, names: Sequence[str | int], folder: Path, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` into a run's folder, whole or not at all.

    ``names`` has the file of each image of the set, or its number in the data set. Of a base alone
    the columns are called ``prediction`` and ``probability``.
    """
    names_of_rows = [names[place] for place in table["index"]]
    title = "file" if isinstance(names_of_rows[0], str) else "index"
    columns: dict[str, list[Any]] = {title: names_of_rows}
    columns["label"] = [classes[number] for number in table["label"]]
    titles = {"before": ("prediction", "probability")}
    if "after" in table:
        titles["before"] = ("before", "before_probability")
        titles["after"] = ("after", "after_probability")
    for side, (class_title, probability_title) in titles.items():
        columns[class_title] = [classes[number] for number in table[side]]
        columns[probability_title] = [f"{p:.6f}" for p in table[f"{side}_probability"]]
    columns["outcome"] = table["outcome"].tolist()
    with (
        atomic_write(folder / PREDICTIONS_FILE) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
