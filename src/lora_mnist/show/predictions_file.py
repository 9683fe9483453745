"""The file of predictions that a run leaves, and that ``predict.py`` writes with ``out=``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.files import write_csv
from lora_mnist.measure.predictions import Predictions


def write_table(
    table: Predictions, names: Sequence[str | int], folder: Path, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` into a run's folder; ``names`` are the images' files or numbers."""
    title = "file" if isinstance(names[0], str) else "index"
    about = {title: names, "label": [classes[c] for c in table.label.tolist()]}
    labels = []
    for side in table.prediction.tolist():
        labels.append([classes[c] for c in side])
    outcomes = table.outcomes().tolist()
    write_predictions(
        folder / "predictions.csv", about, labels, table.probability.tolist(), outcomes
    )


def write_predictions(
    path: Path,
    about: Mapping[str, Sequence[Any]],  # columns that say which image it is
    labels: Sequence[Sequence[str]],  # what a network predicts, or before and after a repair
    probabilities: Sequence[Sequence[float]],
    outcomes: Sequence[str] | None = None,  # what became of each image
) -> None:
    """Write a CSV file with a row for each image; ``configs/predict.yaml`` names its columns."""
    columns = dict(about)
    titles = [("prediction", "probability")]
    if len(labels) == 2:
        titles = [("before", "before_probability"), ("after", "after_probability")]
    for side, (class_title, probability_title) in enumerate(titles):
        columns[class_title] = labels[side]
        columns[probability_title] = [f"{each:.6f}" for each in probabilities[side]]
    if outcomes is not None:
        columns["outcome"] = outcomes
    write_csv(path, columns, zip(*columns.values(), strict=True))
