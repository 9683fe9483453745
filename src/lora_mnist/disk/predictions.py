"""``predictions.csv``: the prediction for each test image, for anybody to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lora_mnist.disk.files import write_csv

PREDICTIONS_FILE = "predictions.csv"

#: The columns of a table by name: see :meth:`.repair.predictions.Predictions.columns`.
Table = Mapping[str, NDArray[Any]]


def write_predictions(
    table: Table, names: Sequence[str | int], folder: Path, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` into a run's folder; ``names`` are the images' files or numbers."""
    title = "file" if isinstance(names[0], str) else "index"
    columns: dict[str, Sequence[Any]] = {title: names}
    columns["label"] = [classes[number] for number in table["label"]]
    titles = {"before": ("prediction", "probability")}
    if "after" in table:
        titles["before"] = ("before", "before_probability")
        titles["after"] = ("after", "after_probability")
    for side, (class_title, probability_title) in titles.items():
        columns[class_title] = [classes[number] for number in table[side]]
        columns[probability_title] = [f"{p:.6f}" for p in table[f"{side}_probability"]]
    columns["outcome"] = table["outcome"].tolist()
    write_csv(folder / PREDICTIONS_FILE, columns, zip(*columns.values(), strict=True))
