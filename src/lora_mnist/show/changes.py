"""Errors before and after a repair, read from ``results.json``, and the names of classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.repair.significance import LEVEL, mcnemar, weakest

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


def rest_of(results: Mapping[str, Any]) -> list[int]:
    """The classes that were not repaired, by number."""
    return [c for c in range(len(results["classes"])) if c not in results["targets"]]


def change_of(
    results: Mapping[str, Any], classes: Sequence[int] | None = None, split: str = "test"
) -> Change:
    """The change in the images of some classes, by number, or of all.

    A base alone is compared with itself.
    """
    after = results[split]
    before = results.get(f"{split}_base", after)
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
