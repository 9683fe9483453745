"""The file of predictions that a run leaves, and that ``predict.py`` writes with ``out=``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist.files import write_csv
from lora_mnist.measure.predictions import Predictions


def write_test_predictions(
    table: Predictions, names: Sequence[str | int], folder: Path, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` into a run's folder; ``names`` are the images' files or numbers."""
    title = "file" if isinstance(names[0], str) else "index"
    columns: list[Sequence[Any]] = [names, [classes[c] for c in table.label.tolist()]]
    sides = table.prediction.tolist(), table.probability.tolist()
    for side, probabilities in zip(*sides, strict=True):
        columns.append([classes[c] for c in side])
        columns.append([_format_probability(each) for each in probabilities])
    titles = [title, "label", *_name_columns(len(table.prediction) == 2), "outcome"]
    rows = zip(*columns, table.outcomes().tolist(), strict=True)
    write_csv(folder / "predictions.csv", titles, rows)


def write_predictions(
    path: Path, predictions: Iterable[Mapping[str, Any]], has_adapter: bool
) -> int:
    """Write predictions one by one; ``configs/predict.yaml`` names the columns."""
    return write_csv(path, ["file", *_name_columns(has_adapter)], map(_row, predictions))


def _row(prediction: Mapping[str, Any]) -> list[str]:
    file, *sides = prediction.values()
    row = [file]
    for side in sides:
        row += [side.label, _format_probability(side.probability)]
    return row


def _name_columns(has_adapter: bool) -> list[str]:
    if has_adapter:
        return ["before", "before_probability", "after", "after_probability"]
    return ["prediction", "probability"]


def _format_probability(probability: float) -> str:
    return f"{probability:.6f}"
