"""The file of predictions that a run leaves, and that ``predict.py`` writes with ``out=``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.files import write_csv


def write_predictions(
    path: Path,
    about: Mapping[str, Sequence[Any]],  # columns that say which image it is
    sides: Sequence[Sequence[tuple[str, float]]],  # of a network, or before and after a repair
    outcomes: Sequence[str] | None = None,  # what became of each image
) -> None:
    """Write a CSV file with a row for each image; ``configs/predict.yaml`` names its columns."""
    columns = dict(about)
    titles = [("prediction", "probability")]
    if len(sides) == 2:
        titles = [("before", "before_probability"), ("after", "after_probability")]
    for side, (class_title, probability_title) in zip(sides, titles, strict=True):
        columns[class_title] = [label for label, _ in side]
        columns[probability_title] = [f"{probability:.6f}" for _, probability in side]
    if outcomes is not None:
        columns["outcome"] = outcomes
    write_csv(path, columns, zip(*columns.values(), strict=True))
