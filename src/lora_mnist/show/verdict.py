"""The verdict on a run: a few sentences from ``results.json``."""

from collections.abc import Mapping
from typing import Any

from lora_mnist.classifier.significance import chance_text
from lora_mnist.show.advice import Phrase
from lora_mnist.show.changes import (
    Change,
    change_of,
    is_guessing,
    named,
    number_of,
    others_of,
    rest_of,
    weakest_of,
)


def verdict(results: Mapping[str, Any]) -> list[Phrase]:
    """The errors before and after, and whether the repair was worth it.

    A change that may be chance is ``plain``. If errors in all increased, no part is ``good``.
    """
    phrases = _repair_phrases(results) if "test_base" in results else _base_phrases(results)
    if results.get("test_held_out_now"):
        text = (
            "These test images were held out just now: if the network was trained on this folder, "
        )
        phrases.append(Phrase(f"{text}they prove nothing."))
    return phrases


def verdict_text(results: Mapping[str, Any]) -> str:
    """:func:`verdict` as plain text."""
    return " ".join(phrase.text for phrase in verdict(results))


def _base_phrases(results: Mapping[str, Any]) -> list[Phrase]:
    """The errors of a base alone, and those of its weakest class."""
    total = change_of(results)
    text = f"{number_of(total.after, 'error')} in {total.images:,} images"
    if not total.after:
        return [Phrase(f"{text}.", "good")]
    worst = weakest_of(results, range(len(results["classes"])))
    weakest = change_of(results, [worst])
    name = named(results["classes"], [worst])
    errors = f"{number_of(weakest.after, 'error')} in {weakest.images:,}"
    return [Phrase(f"{text}."), Phrase(f"The weakest class is {name}: {errors}.")]


def _repair_phrases(results: Mapping[str, Any]) -> list[Phrase]:
    """The changes, then the judgement; a loss on what was repaired before comes first."""
    parts: list[tuple[str, Change]] = []
    for split, name in (("mistakes", "learnt"), ("mistakes_test", "held out")):
        if split in results:
            change = change_of(results, split=split)
            right, now = change.images - change.before, change.images - change.after
            text = f"mistakes {name}: {right:,} -> {now:,} of {change.images:,} right"
            parts.append((text, change))
    classes, targets = results["classes"], results["targets"]
    earlier = results.get("repaired_before", [])
    groups: dict[str, list[int] | None] = {"test images": None}
    if targets:
        groups = {named(classes, targets): targets}
        if rest := rest_of(results):
            groups[others_of(classes)] = rest
    for name, group in groups.items():
        text, change = _part(name, change_of(results, group))
        if group == targets:
            text += f", false calls {change.false_calls_before:,} -> {change.false_calls:,}"
        parts.append((text, change))
    if earlier:
        change = change_of(results, earlier)
        part = _part(f"{named(classes, earlier)} (repaired before)", change)
        parts.insert(0 if change.after > change.before else 1, part)
    judgement = _judgement(results)
    phrases = []
    for place, (text, change) in enumerate(parts, start=1):
        is_good_of_bad = judgement.mood == "bad" and change.mood == "good"
        end = ":" if place == len(parts) else ";"
        phrases.append(Phrase(text + end, "plain" if is_good_of_bad else change.mood))
    return [*phrases, judgement]


def _part(name: str, change: Change) -> tuple[str, Change]:
    """``nines: 70 errors -> 9 (broken 2, p < 0.001)``, beside the change itself."""
    notes = []
    if change.broken:
        notes.append(f"broken {change.broken:,}")
    if change.before != change.after:
        notes.append(chance_text(change.p_value))
    more = f" ({', '.join(notes)})" if notes else ""
    return f"{name}: {number_of(change.before, 'error')} -> {change.after:,}{more}", change


def _judgement(results: Mapping[str, Any]) -> Phrase:
    """Whether the repair was worth it."""
    classes, targets, dial = results["classes"], results["targets"], results.get("dial") or {}
    change, elsewhere = change_of(results), change_of(results, rest_of(results))
    is_repaired = bool(targets) and change_of(results, targets).mood == "good"
    if is_guessing(results):
        text = f"{elsewhere.after:,} of {elsewhere.images:,} images of {others_of(classes)}"
        return Phrase(f"{text} are wrong, no better than guessing.", "bad")
    if dial.get("saved") == 0:
        return Phrase("saved at scale 0: no scale beats the base on validation images.")
    if change.mood == "good":
        text = f"in all, {change.before:,} errors became {change.after:,}"
        if targets and not is_repaired:
            return Phrase(f"{text}, but no clear gain on {named(classes, targets)}.")
        is_lost = change_of(results, results.get("repaired_before", [])).mood == "bad"
        return Phrase(f"{text}.", "plain" if is_lost else "good")
    if change.mood == "plain":
        text = "no clear gain in all"
        if is_repaired:
            text = f"{named(classes, targets)} repaired, but {text}"
        counts = f"{number_of(change.repaired, 'image')} repaired, {change.broken:,} broken"
        return Phrase(f"{text}: {counts} ({chance_text(change.p_value)}).")
    if "mistakes" in results:
        errors = number_of(change.after - change.before, "test error")
        return Phrase(f"mending the mistakes cost {errors}.")
    return Phrase("the repair did more harm than good.", "bad")
