"""What a run found, in sentences: pure functions from ``results.json`` to text.

Numbers have thousands separators; classes are called as people call them, ``nines`` for MNIST's
``9 - nine``, and ``the images of cat`` where a name is not known to have a plural.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_mnist.sweep.command import override

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_Results = Mapping[str, Any]


@dataclass(frozen=True)
class Phrase:
    """A part of a sentence, and what it means for the reader.

    Attributes:
        text: the words.
        mood: ``good``, ``bad``, ``plain``, or ``advice``: what to do next.
    """

    text: str
    mood: str = "plain"


def verdict(results: _Results) -> list[Phrase]:
    """One line that a person can act on; its text is that of the phrases, joined by spaces.

    Args:
        results: what results.json holds; of one that is not complete, what can be said.

    Returns:
        For a base alone, where it is weak. For a repair, errors before and after on the classes to
        repair and on the others, and whether it was worth it. Empty without a test.
    """
    if "test" not in results:
        return []
    classes = [str(name) for name in results.get("classes", [])]
    if "test_base" not in results:
        return _weakness(results, classes)
    target = targets_of(results)
    parts = _repair(results, classes, target) if target else _all_changes(results, classes)
    return [*parts, *_judgement(results, classes)]


def verdict_text(results: _Results) -> str:
    """:func:`verdict` as plain text."""
    return " ".join(phrase.text for phrase in verdict(results))


def targets_of(results: _Results) -> list[int]:
    """The classes to repair, by number."""
    digit = results.get("digit")
    return [digit] if isinstance(digit, int) else list(digit or [])


def training_sentence(
    stage: str,
    images: int,
    classes: Sequence[str],
    targets: Sequence[int] | None,
    replay: int = 0,
    hardness: float = 0.0,
) -> str:
    """What a run is about to train, and on what; the line at its start.

    Args:
        stage: pretrain, lora or finetune.
        images: training images, of ``targets`` alone where there are any.
        classes: what the classes are called.
        targets: the classes to repair, by number; ``None`` for all.
        replay: images of the other classes that accompany each step.
        hardness: above 0, hard images are drawn more often.
    """
    trained = {"pretrain": "a base", "lora": "an adapter"}.get(stage, "the base's own weights")
    if targets:
        what = f"{images:,} {named(classes, targets)}"
    else:
        what = f"{images:,} images of {len(classes)} classes"
    if replay:
        what += f" and {replay:,} replayed images of {_others(classes)} a step"
    return f"training {trained} on {what}{', hard ones preferred' if hardness else ''}"


def named(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """Classes in the plural: ``nines``, ``fours and nines``, ``images of cat``."""
    plurals = [_plural(classes[n]) if n < len(classes) else f"class {n}" for n in numbers]
    if not all(plurals):
        plurals, start = [classes[n] for n in numbers], "images of "
    else:
        start = ""
    *first, last = [str(plural) for plural in plurals]
    return start + (f"{', '.join(first)} and {last}" if first else last)


def _plural(name: str) -> str | None:
    """``nines`` of ``9 - nine``, ``9`` or ``nine``; ``None`` where the name is not of a digit."""
    word = name.rpartition(" - ")[2].lower()
    word = _DIGITS[int(word)] if re.fullmatch(r"[0-9]", word) else word
    if word not in _DIGITS:
        return None
    return word + ("es" if word == "six" else "s")


def _others(classes: Sequence[str]) -> str:
    """The classes that are not to repair: ``the other digits``."""
    return "the other digits" if all(map(_plural, classes)) else "the other classes"


# --- the parts of the verdict --------------------------------------------------------------------


def _weakness(results: _Results, classes: Sequence[str]) -> list[Phrase]:
    """Where a base alone errs, and how to repair that."""
    test = results["test"]
    errors, images = test["errors_per_class"], test["images_per_class"]
    total = sum(errors)
    said = Phrase(f"{_errors(total)} in {sum(images):,} images")
    if not total:
        return [Phrase(f"{said.text}.", "good")]
    worst = max(range(len(errors)), key=errors.__getitem__)
    where = f"most on {_the(classes, [worst])}: {errors[worst]:,} of {images[worst]:,}."
    name = classes[worst]
    digit = worst if name.startswith(f"{worst} - ") else name
    advice = f"`experiment=repair {shlex.quote(override('digit', digit))}` repairs them."
    return [Phrase(f"{said.text},"), Phrase(where), Phrase(advice, "advice")]


def _repair(results: _Results, classes: Sequence[str], target: Sequence[int]) -> list[Phrase]:
    """Errors before and after, on the classes to repair and on the others."""
    base, test = results["test_base"]["errors_per_class"], results["test"]["errors_per_class"]
    broken = results["test"].get("broken_per_class", [0] * len(base))
    before, after = sum(base[c] for c in target), sum(test[c] for c in target)
    sides = [_change(f"{named(classes, target)}:", _errors(before), before, after)]
    if rest := [c for c in range(len(base)) if c not in target]:
        before, after = sum(base[c] for c in rest), sum(test[c] for c in rest)
        lost = sum(broken[c] for c in rest)
        sides.append(_change(f"{_others(classes)}:", f"{before:,}", before, after, lost))
    *first, last = sides
    ended = [Phrase(f"{side.text};", side.mood) for side in first]
    return [*ended, Phrase(f"{last.text}:", last.mood)]


def _all_changes(results: _Results, classes: Sequence[str]) -> list[Phrase]:
    """Errors before and after over all classes, and where they changed most."""
    base, test = results["test_base"]["errors_per_class"], results["test"]["errors_per_class"]
    before, broken = sum(base), results["test"].get("broken", 0)
    said = [_change("all classes:", _errors(before), before, sum(test), broken)]
    change = [after - before for before, after in zip(base, test, strict=True)]
    best, worst = (f(range(len(change)), key=change.__getitem__) for f in (min, max))
    for c, word, mood in ((best, "better", "good"), (worst, "worse", "bad")):
        if (change[c] < 0) == (mood == "good") and change[c]:
            text = f"{_the(classes, [c])} got {word} ({base[c]:,} -> {test[c]:,})"
            said.append(Phrase(text, mood))
    ends = [","] * (len(said) - 1) + [":"]
    return [Phrase(p.text + end, p.mood) for p, end in zip(said, ends, strict=True)]


def _change(name: str, start: str, before: int, after: int, broken: int = 0) -> Phrase:
    more = f" (broken {broken:,})" if broken else ""
    mood = "plain" if before == after else "good" if after < before else "bad"
    return Phrase(f"{name} {start} -> {after:,}{more}", mood)


def _judgement(results: _Results, classes: Sequence[str]) -> list[Phrase]:
    """Whether the repair was worth it, and what to do if it was not."""
    before, after = (sum(results[s]["errors_per_class"]) for s in ("test_base", "test"))
    target = targets_of(results)
    if after < before:
        left = "no error is left." if not after else f"{after:,} of {before:,} errors left."
        return [Phrase(left, "good")]
    if after == before:
        return [Phrase(f"as many errors as before, {after:,}.")]
    said = [Phrase("the repair did more harm than good.", "bad")]
    if target and results.get("stage") == "lora" and results.get("replay") == 0:
        advice = f"`experiment=repair` replays {_others(classes)}."
        said.append(Phrase(advice, "advice"))
    return said


def _errors(count: int) -> str:
    return f"{count:,} error" + ("" if count == 1 else "s")


def _the(classes: Sequence[str], numbers: Sequence[int]) -> str:
    return f"the {named(classes, numbers)}"
