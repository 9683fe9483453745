"""The tags by which loggers get the counts of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_mnist.measure.class_weights import MEASURES
from lora_mnist.measure.counts import OF_DIAL

#: The counts that loggers get.
LOGGED = (*MEASURES, "loss", "repaired", "broken", *OF_DIAL, "precision_of_target")
#: With more classes only those to repair have a curve of their own.
_MAX_CURVES = 16


def logged_metrics(
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = (),
    targets: Sequence[int] = (),
) -> dict[str, float]:
    """The numbers of ``outcomes`` by a logger's tag; with ``names`` each class has its accuracy."""
    classes: Sequence[int] = range(len(names))
    if len(names) > _MAX_CURVES:
        classes = targets[:_MAX_CURVES]
    tags: dict[str, float] = {}
    for part, outcome in outcomes.items():
        numbers = {key: outcome.get(key) for key in LOGGED}
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        if part in ("val", "test", "test_base"):
            for c in classes:
                name = names[c].replace("/", "-")  # else it would begin a level of tags
                if images[c]:
                    numbers[f"accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
        for key, number in numbers.items():
            if number is not None:
                tags[f"{part}/{key}"] = float(number)
    return tags
