"""The numbers that loggers get from a validation or a test."""

from collections.abc import Mapping, Sequence
from typing import Any

#: With more classes only those to repair have a curve of their own.
_MAX_CURVES = 16


def logged_metrics(
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = (),
    targets: Sequence[int] | None = None,
) -> dict[str, float]:
    """The numbers of ``outcomes``, which have their names of results.json, by tag.

    With ``names`` each class has a curve; among many classes only those to repair have one.
    """
    classes: Sequence[int] = range(len(names))
    if len(names) > _MAX_CURVES:
        classes = list(targets or ())[:_MAX_CURVES]
    tags: dict[str, float] = {}
    for split, outcome in outcomes.items():
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        for key in ("accuracy", "loss", "errors", "repaired", "broken"):
            if outcome.get(key) is not None:
                tags[f"{split}/{key}"] = float(outcome[key])
        if targets:
            target_errors = sum(errors[c] for c in targets)
            tags[f"{split}/errors_of_target"] = float(target_errors)
            tags[f"{split}/errors_elsewhere"] = float(sum(errors) - target_errors)
            false_calls = sum(outcome["false_calls_per_class"][c] for c in targets)
            tags[f"{split}/false_calls_of_target"] = float(false_calls)
        for c in classes:
            name = names[c].replace("/", "-")  # else it would begin a level of tags
            if images[c]:
                tags[f"{split}/accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
            if (precision := outcome["precision_per_class"][c]) is not None:
                tags[f"{split}/precision_per_class/{name}"] = precision
    return tags
