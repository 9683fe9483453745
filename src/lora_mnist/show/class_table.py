"""The table of classes: which of them get a row, and its columns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_mnist.repair.significance import wilson
from lora_mnist.show.changes import change_of

#: With more classes, tables and figures begin with what changed and sum up the rest.
FEW_CLASSES = 16
#: A longer table would push the verdict off the screen; results.json has every class.
_MAX_CLASSES = 20


class Row(NamedTuple):
    """A line of the table of classes: cells by title, and the outcome of the change."""

    name: str
    cells: dict[str, Any]
    outcome: str
    is_target: bool


def listed_classes(results: Mapping[str, Any]) -> list[int]:
    """The classes that get a row or a bar of their own, by number.

    Up to ``FEW_CLASSES`` are all listed. Of more, first those to repair, then those that changed
    most. Of a base alone those with most errors are listed.
    """
    every = range(len(results["classes"]))
    if len(every) <= FEW_CLASSES:
        return list(every)
    sizes = {}
    for c in every:
        change = change_of(results, [c])
        size = abs(change.after - change.before), change.repaired + change.broken
        sizes[c] = size if "test_base" in results else (change.after, 0)
    others = [c for c in every if c not in results["targets"] and sizes[c] > (0, 0)]
    others.sort(key=lambda c: sizes[c], reverse=True)
    return [*results["targets"], *others][:_MAX_CLASSES]


def class_rows(results: Mapping[str, Any]) -> list[Row]:
    """The table of errors: :func:`listed_classes`, the others in one row, and all images."""
    every = list(range(len(results["classes"])))
    numbers, is_repair = listed_classes(results), "test_base" in results
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
