"""The table of classes: which of them get a row, and its columns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_mnist.repair.significance import wilson
from lora_mnist.show.changes import change_of, rest_of

#: A longer table would push the verdict off the screen; results.json has every class.
_MAX_CLASSES = 20


class Row(NamedTuple):
    """A line of the table of classes: cells by title, and the outcome of the change."""

    name: str
    cells: dict[str, Any]
    outcome: str
    is_target: bool


def class_rows(results: Mapping[str, Any]) -> list[Row]:
    """The table of errors: a row for each class, perhaps one for the others, and all images.

    Of many classes those to repair are listed, and those that changed most; of a base alone those
    with most errors.
    """
    every, is_repair = list(range(len(results["classes"]))), "test_base" in results
    numbers = every
    if len(every) > _MAX_CLASSES:
        sizes = {}
        for c in rest_of(results):
            change = change_of(results, [c])
            sizes[c] = change.repaired + change.broken if is_repair else change.after
        others = sorted(sizes, key=lambda c: sizes[c], reverse=True)
        numbers = [*results["targets"], *others][:_MAX_CLASSES]
    groups = [(results["classes"][c], [c]) for c in numbers]
    rest = [c for c in every if c not in numbers]
    if rest:
        groups.append((f"{len(rest)} others", rest))
    rows = []
    for name, classes in [*groups, ("all", every)]:
        change = change_of(results, classes)
        cells: dict[str, Any] = {"errors": change.after, "false calls": change.false_calls}
        if is_repair:
            cells = {
                "errors": f"{change.before} -> {change.after}",
                "repaired": change.repaired,
                "broken": change.broken,
                "false calls": f"{change.false_calls_before} -> {change.false_calls}",
            }
        if classes == every:
            cells["false calls"] = ""  # as many as errors
        cells["images"] = change.images
        low, high = wilson(change.after, change.images)
        cells["95% interval"] = f"{low:.0f}-{high:.0f}"
        is_target = is_repair and len(classes) == 1 and classes[0] in results["targets"]
        rows.append(Row(name, cells, change.outcome, is_target))
    return rows
