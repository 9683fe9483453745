"""The verdict on a run: a few sentences from ``results.json``."""

from collections.abc import Mapping
from typing import Any

from lora_mnist.repair.significance import LEVEL, chance_text, mcnemar
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
from lora_mnist.show.next_steps import Phrase


def verdict(results: Mapping[str, Any]) -> list[Phrase]:
    """Whether to keep a repair, then what it changed, and for whom; or the errors of a base."""
    phrases = _repair_phrases(results) if "test_base" in results else _base_phrases(results)
    if results.get("test_held_out_now"):
        text = "The test images were held out of this folder just now: if the base was trained on "
        phrases.append(Phrase(f"{text}the whole folder, they prove nothing."))
    return phrases


def verdict_text(results: Mapping[str, Any]) -> str:
    """:func:`verdict` as plain text."""
    return " ".join(phrase.text for phrase in verdict(results))


def _base_phrases(results: Mapping[str, Any]) -> list[Phrase]:
    """The errors of a base alone, and those of its weakest class."""
    total = change_of(results)
    text = f"{number_of(total.after, 'error')} in {total.images:,} images"
    if not total.after:
        return [Phrase(f"{text}.", "better")]
    worst = weakest_of(results, range(len(results["classes"])))
    weakest = change_of(results, [worst])
    name = named(results["classes"], [worst])
    errors = f"{number_of(weakest.after, 'error')} in {weakest.images:,}"
    return [Phrase(f"{text}."), Phrase(f"The weakest class is {name}: {errors}.")]


def _repair_phrases(results: Mapping[str, Any]) -> list[Phrase]:
    """The judgement, then a sentence for each group of images that the repair concerns."""
    classes, targets, phrases = results["classes"], results["targets"], [_judgement(results)]
    for split, name in (("mistakes", "to learn"), ("mistakes_test", "held out")):
        if split in results:
            change = change_of(results, split=split)
            right, now = change.images - change.before, change.images - change.after
            text = f"Mistakes {name}: {right:,} -> {now:,} of {change.images:,} right."
            phrases.append(Phrase(text, change.outcome))
    phrases.append(_sentence("On all test images", change_of(results)))
    untested = _untested(results)
    if untested and untested != targets:
        phrases.append(Phrase(f"No test image is of {named(classes, untested)}."))
    rest = rest_of(results)
    if targets and untested != targets:
        phrases.append(_sentence(f"On {named(classes, targets)}", change_of(results, targets)))
        if rest:
            phrases.append(_false_calls(results))
    if targets and rest:
        phrases.append(_sentence(f"On {others_of(classes)}", change_of(results, rest)))
    loser = _loser(results)
    if loser is None:
        if targets and len(rest) > 1:
            phrases.append(Phrase("No other class has more errors than before."))
    elif rest != [loser]:
        name = named(classes, [loser])
        phrases.append(_sentence(f"Most is lost on {name}", change_of(results, [loser])))
    if phrases[0].text.startswith(("Do not keep", "There is no repair")):
        phrases.append(Phrase("What it means, and what to try next: docs/failed.md."))
    return phrases


def _untested(results: Mapping[str, Any]) -> list[int]:
    """The classes to repair that no test image is of."""
    return [target for target in results["targets"] if not change_of(results, [target]).images]


def _false_calls(results: Mapping[str, Any]) -> Phrase:
    """How often images of other classes get a name of those to repair, which are one group.

    Precision is the share of the group's own images among all that get one of its names.
    """
    counts, shares = [], []
    for outcome in (results["test_base"], results["test"]):
        called = 0
        for c in results["targets"]:
            called += outcome["images_per_class"][c] - outcome["errors_per_class"][c]
            called += outcome["false_calls_per_class"][c]
        counts.append(outcome["false_calls_of_target"])
        shares.append(f"{1 - counts[-1] / called:.0%}" if called else "none")
    before, after = counts
    text = f"Other images called {named(results['classes'], results['targets'])} (false calls): "
    text += f"{before:,} -> {after:,}; precision {shares[0]} -> {shares[1]}."
    # As if no image were among both counts, which is the cautious way to compare them.
    if mcnemar(before, after) > LEVEL:
        return Phrase(text)
    return Phrase(text, "worse" if after > before else "better")


def _loser(results: Mapping[str, Any]) -> int | None:
    """The class, not one to repair, that gets most errors more, if any does."""
    loser, most = None, 0
    for number in rest_of(results):
        change = change_of(results, [number])
        if change.after - change.before > most:
            loser, most = number, change.after - change.before
    return loser


def _sentence(name: str, change: Change) -> Phrase:
    """A sentence such as ``On nines: 70 errors -> 9 (63 repaired, 2 broken, p < 0.001).``."""
    text = f"{name}: {number_of(change.before, 'error')} -> {change.after:,}"
    if change.repaired or change.broken:
        chance = chance_text(change.p_value)
        text += f" ({change.repaired:,} repaired, {change.broken:,} broken, {chance})"
    return Phrase(f"{text}.", change.outcome)


def _judgement(results: Mapping[str, Any]) -> Phrase:
    """Whether to keep the repair. A change that may be chance counts for nothing."""
    classes, targets = results["classes"], results["targets"]
    change, elsewhere = change_of(results), change_of(results, rest_of(results))
    name = named(classes, targets) if targets else ""
    is_repaired = bool(targets) and change_of(results, targets).outcome == "better"
    loser = _loser(results)
    if targets and _untested(results) == targets:
        text = f"No test image is of {name}: nothing here says whether the repair helps."
        return Phrase(text)
    if is_guessing(results):
        text = f"{elsewhere.after:,} of {elsewhere.images:,} images of {others_of(classes)}"
        text = f"Do not keep this repair: {text} are wrong, no better than guessing."
        return Phrase(text, "worse")
    if results.get("scale") == 0 and results["stage"] == "lora":
        return Phrase(
            "There is no repair to keep: no scale of the adapter beats the base on validation "
            "images, and it is saved at scale 0, which is the base."
        )
    if change.outcome == "better":
        fewer = "there are fewer errors in all"
        if targets and not is_repaired:
            text = f"Keep this repair, though not for {name}: {fewer}, but no clear gain on {name}."
            return Phrase(text)
        if loser is not None and change_of(results, [loser]).outcome == "worse":
            loss = named(classes, [loser])
            text = f"Keep this repair unless the loss on {loss} matters more: {fewer}."
            return Phrase(text, "better")
        return Phrase(f"Keep this repair: {fewer}.", "better")
    if "mistakes" in results and change_of(results, split="mistakes").repaired:
        price = "are more errors" if change.outcome == "worse" else "is no clear loss"
        return Phrase(f"Keep this repair for the mistakes alone: there {price} in all.")
    if change.outcome == "worse":
        return Phrase("Do not keep this repair: there are more errors in all.", "worse")
    if is_repaired:
        text = (
            f"Keep this repair only if errors on {name} matter most: there is no clear gain in all."
        )
        return Phrase(text)
    return Phrase("Do not keep this repair: there is no clear gain.")
