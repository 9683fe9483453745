"""The table of classes: which of them get a row, and its columns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.classifier.significance import wilson
from lora_mnist.show.changes import change_of, repaired_classes

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

    Up to ``FEW_CLASSES`` are all listed. From more, first those to repair, then those of earlier
    repairs, then those that changed most. A base alone lists the classes with most errors.
    """
    every = range(len(results["classes"]))
    if len(every) <= FEW_CLASSES:
        return list(every)
    first = repaired_classes(results)
    sizes = {}
    for c in every:
        change = change_of(results, [c])
        size = abs(change.after - change.before), change.repaired + change.broken
        sizes[c] = size if "test_base" in results else (change.after, 0)
    others = [c for c in every if c not in first and sizes[c] > (0, 0)]
    others.sort(key=lambda c: sizes[c], reverse=True)
    return [*first, *others][:_MAX_CLASSES]


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
        cells: dict[str, Any] = {}
        if "test_before" in results:
            cells["base errors"] = sum(results["test_base"]["errors_per_class"][c] for c in classes)
        cells["errors"] = _around([f"{change.before}", f"{change.after}"], is_repair)
        if is_repair:
            cells |= {"repaired": change.repaired, "broken": change.broken}
        # All images have as many false calls as errors.
        calls = [f"{change.false_calls_before}", f"{change.false_calls}"]
        cells["false calls"] = "" if classes == every else _around(calls, is_repair)
        cells["images"] = change.images
        low, high = wilson(change.after, change.images)
        cells["95% interval"] = f"{low:.0f}-{high:.0f}"
        is_target = is_repair and len(classes) == 1 and classes[0] in results["targets"]
        if len(classes) == 1 and classes[0] in results.get("repaired_before", []):
            name += " +"  # the table's title explains it
        rows.append(Row(name, cells, change.outcome, is_target))
    return rows


def _around(texts: Sequence[str], is_repair: bool) -> str:
    """``8 -> 177``, or ``177`` alone where nothing was repaired."""
    return " -> ".join(texts) if is_repair else texts[-1]
