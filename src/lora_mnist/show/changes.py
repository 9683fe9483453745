"""Errors before and after a repair, read from ``results.json``, and the names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.classifier.significance import LEVEL, mcnemar, weakest, wilson

#: With more classes, tables and figures begin with what changed and sum up the rest.
FEW_CLASSES = 16
#: A longer table would push the verdict off the screen; results.json has every class.
_MAX_CLASSES = 20
_DIGITS = {"0": "zeros", "1": "ones", "2": "twos", "3": "threes", "4": "fours"}
_DIGITS |= {"5": "fives", "6": "sixes", "7": "sevens", "8": "eights", "9": "nines"}
#: More names than these would fill the line.
_MAX_NAMES = 4


class Change(NamedTuple):
    """The errors in the images of some classes, and the false calls of these, around a repair."""

    before: int
    after: int
    repaired: int
    broken: int
    images: int
    false_calls_before: int
    false_calls: int

    @property
    def p_value(self) -> float:
        """McNemar's test of ``repaired`` and ``broken``."""
        return mcnemar(self.repaired, self.broken)

    @property
    def outcome(self) -> str:
        """``better`` or ``worse``; ``unclear`` where the change may be chance."""
        if self.p_value > LEVEL:
            return "unclear"
        return "better" if self.after < self.before else "worse"


class Row(NamedTuple):
    """A line of the table of classes: cells by title, and the outcome of the change."""

    name: str
    cells: dict[str, Any]
    outcome: str
    is_target: bool


def repaired_classes(results: Mapping[str, Any]) -> list[int]:
    """The classes of this repair, then those of earlier ones, by number."""
    return [*results["targets"], *results.get("repaired_before", [])]


def rest_of(results: Mapping[str, Any]) -> list[int]:
    """The classes that were not repaired, by number."""
    repaired = repaired_classes(results)
    return [c for c in range(len(results["classes"])) if c not in repaired]


def outcome_before(results: Mapping[str, Any], split: str = "test") -> Any:
    """The outcome that a repair is compared with: the base's, or that of earlier repairs on it.

    A base alone is compared with itself.
    """
    base = results.get(f"{split}_base", results[split])
    return results.get(f"{split}_before", base)


def change_of(
    results: Mapping[str, Any], classes: Sequence[int] | None = None, split: str = "test"
) -> Change:
    """The change in the images of some classes, by number, or of all."""
    before, after = outcome_before(results, split), results[split]
    numbers = range(len(after["errors_per_class"])) if classes is None else classes

    def total(counts: Sequence[int] | None) -> int:
        return sum(counts[c] for c in numbers) if counts else 0

    return Change(
        before=total(before["errors_per_class"]),
        after=total(after["errors_per_class"]),
        repaired=total(after.get("repaired_per_class")),
        broken=total(after.get("broken_per_class")),
        images=total(after["images_per_class"]),
        false_calls_before=total(before["false_calls_per_class"]),
        false_calls=total(after["false_calls_per_class"]),
    )


def weakest_of(results: Mapping[str, Any], classes: Sequence[int], split: str = "test") -> int:
    """The weakest of some classes on the images of a split, by number."""
    errors, images = (results[split][f"{key}_per_class"] for key in ("errors", "images"))
    return classes[weakest([errors[c] for c in classes], [images[c] for c in classes])]


def is_guessing(results: Mapping[str, Any]) -> bool:
    """Whether a repair leaves the other classes no better than a random answer would."""
    elsewhere = change_of(results, rest_of(results))
    right = elsewhere.images - elsewhere.after
    chance = elsewhere.images / len(results["classes"])
    return bool(results["targets"] and elsewhere.images) and right <= chance


# --- names ----------------------------------------------------------------------------------------


def are_digits(classes: Sequence[str]) -> bool:
    """Whether all of these are called 0 to 9."""
    return _DIGITS.keys() >= set(classes)


def named(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """Classes in a sentence: ``fours and nines``, ``cat and dog``, ``12 classes``."""
    names = [classes[number] for number in numbers]
    if len(names) > _MAX_NAMES:
        return f"{len(names)} classes"
    if are_digits(names):
        names = [_DIGITS[name] for name in names]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def others_of(classes: Sequence[str]) -> str:
    """The words for all classes but those to repair."""
    return "the other digits" if are_digits(classes) else "the other classes"


def number_of(count: int, word: str) -> str:
    """``1 error``, ``2,000 errors``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


# --- the table ------------------------------------------------------------------------------------


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
