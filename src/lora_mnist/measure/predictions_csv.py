"""``predictions.csv``: the prediction for each test image, for anybody to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_mnist.files import write_csv
from lora_mnist.measure.predictions import Predictions

PREDICTIONS_FILE = "predictions.csv"


def write_predictions(
    table: Predictions, names: Sequence[str | int], folder: Path, classes: Sequence[str]
) -> None:
    """Write ``predictions.csv`` into a run's folder; ``names`` are the images' files or numbers."""
    title = "file" if isinstance(names[0], str) else "index"
    columns: dict[str, Sequence[Any]] = {title: names}
    columns["label"] = [classes[number] for number in table.label.tolist()]
    titles = [("prediction", "probability")]
    if len(table.prediction) == 2:
        titles = [("before", "before_probability"), ("after", "after_probability")]
    for place, (class_title, probability_title) in enumerate(titles):
        columns[class_title] = [classes[number] for number in table.prediction[place].tolist()]
        columns[probability_title] = [f"{p:.6f}" for p in table.probability[place].tolist()]
    columns["outcome"] = table.outcomes().tolist()
    write_csv(folder / PREDICTIONS_FILE, columns, zip(*columns.values(), strict=True))
