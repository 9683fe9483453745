"""What a run found, in sentences: pure functions from ``results.json`` to text.

Numbers have thousands separators; classes are called as people call them, ``nines`` for MNIST's
``9 - nine``, and ``images of cat`` where a name is not known to have a plural.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.classifier.significance import LEVEL, chance_text, mcnemar, p_text
from lora_mnist.sweep.command import override, quoted

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Phrase(NamedTuple):
    """A part of a sentence, and its mood: ``good``, ``bad``, ``plain``, or ``advice``."""

    text: str
    mood: str = "plain"


def verdict(results: Mapping[str, Any]) -> list[Phrase]:
    """One line that a person can act on; its text is that of the phrases, joined by spaces.

    For a base alone, where it is weak. For a repair, errors before and after on the classes to
    repair and on the others, and whether it was worth it. What chance explains is neither good nor
    bad, and nothing is good where the whole is bad. Empty without a test.
    """
    if "test" not in results:
        return []
    if "test_base" not in results:
        return _weakness(results)
    changes, judgement = _mended(results) + _changes(results), _judgement(results)
    if judgement[0].mood == "bad":
        changes = [p._replace(mood="plain") if p.mood == "good" else p for p in changes]
    return changes + judgement


def verdict_text(results: Mapping[str, Any]) -> str:
    """:func:`verdict` as plain text."""
    return " ".join(phrase.text for phrase in verdict(results))


def started_from(results: Mapping[str, Any]) -> Any:
    """What a repair is compared with: the base, or for an adapter on others the base with those."""
    return results.get("test_before", results["test_base"])


def counts_per_class(results: Mapping[str, Any]) -> dict[str, list[int]]:
    """The columns of a table with a row for each class, by title."""
    test = results["test"]
    images, errors = test["images_per_class"], test["errors_per_class"]
    if "test_base" not in results:
        return {"images": images, "errors": errors}
    columns = {
        "repaired": test["repaired_per_class"],
        "broken": test["broken_per_class"],
        "base errors": results["test_base"]["errors_per_class"],
    }
    before = started_from(results)["errors_per_class"]
    if "test_before" in results:
        columns["errors before"] = before
    change = [end - start for start, end in zip(before, errors, strict=True)]
    return {**columns, "errors": errors, "change": change, "images": images}


def confusions(results: Mapping[str, Any]) -> dict[str, list[Phrase]]:
    """A line for ``base`` and one for ``adapted``: what they take for what most often.

    The line of what was tested ends in the command that repairs it, on top of its adapter; after
    more harm than good there is none.
    """
    classes, adapter = results["classes"], results.get("adapter")
    sides, goes_on = {"base": results["test"]}, True
    if "test_base" in results:
        sides = {"base": started_from(results), "adapted": results["test"]}
        goes_on = isinstance(adapter, str) and _judgement(results)[0].mood != "bad"
    lines = {}
    for side, outcome in sides.items():
        found = outcome.get("confusions", [])
        if not found:
            continue
        name = "before" if side == "base" and "test_before" in results else side
        texts = [_confusion(classes, **confusion) for confusion in found]
        lines[side] = [Phrase(f"largest confusions, {name}: {', '.join(texts)}.")]
        if outcome is results["test"] and goes_on:
            command = f"experiment=repair {_digit(classes, sorted({c['label'] for c in found}))}"
            if side == "adapted":
                adapter = "latest" if results["stage"] == "lora" else adapter
                command += f" {quoted(override('adapter', adapter))}"
            lines[side].append(Phrase(f"`{command}` repairs them.", "advice"))
    return lines


def targets_of(results: Mapping[str, Any]) -> list[int]:
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
    are_mistakes: bool = False,
) -> str:
    """What a run is about to train, and on what; the line at its start.

    The images are those of ``targets``, by number, where there are any, or a folder of mistakes;
    the replayed ones accompany each step.
    """
    trained = {"pretrain": "a base", "lora": "an adapter"}.get(stage, "the base's own weights")
    what = named(classes, targets) if targets else f"images of {len(classes)} classes"
    what = f"{images:,} {'mistakes' if are_mistakes else what}"
    if replay:
        of = "all classes" if are_mistakes else _others(classes)
        what += f" and {replay:,} replayed images of {of} a step"
    return f"training {trained} on {what}{', hard ones preferred' if hardness else ''}"


def short_name(name: str) -> str:
    """``9`` of torchvision's ``9 - nine``."""
    return name.partition(" - ")[0]


def named(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """Classes in the plural: ``nines``, ``fours and nines``, ``images of cat``."""
    names = [str(classes[number]) for number in numbers]
    plurals = [_plural(name) for name in names]
    of_digits = all(plurals)
    *first, last = plurals if of_digits else names
    text = f"{', '.join(first)} and {last}" if first else last
    return text if of_digits else f"images of {text}"


def _plural(name: str) -> str:
    """``nines`` of ``9 - nine``, ``9`` or ``nine``; empty where the name is not of a digit."""
    word = name.rpartition(" - ")[2].lower()
    if word in map(str, range(10)):
        word = _DIGITS[int(word)]
    return word + ("es" if word == "six" else "s") if word in _DIGITS else ""


def _others(classes: Sequence[str]) -> str:
    return "the other digits" if all(_plural(str(c)) for c in classes) else "the other classes"


def _weakness(results: Mapping[str, Any]) -> list[Phrase]:
    """Where a base alone errs, and how to repair that."""
    classes, test = results["classes"], results["test"]
    errors, images = test["errors_per_class"], test["images_per_class"]
    total = sum(errors)
    said = f"{total:,} error{'' if total == 1 else 's'} in {sum(images):,} images"
    if not total:
        return [Phrase(f"{said}.", "good")]
    worst = errors.index(max(errors))
    return [
        Phrase(f"{said},"),
        Phrase(f"most on the {named(classes, [worst])}: {errors[worst]:,} of {images[worst]:,}."),
        Phrase(f"`experiment=repair {_digit(classes, [worst])}` repairs them.", "advice"),
    ]


def _confusion(classes: Sequence[str], label: int, taken_for: int, images: int) -> str:
    """``21 fours taken for nines``, or ``1 image of 4 taken for 9``."""
    names = [str(classes[label]), str(classes[taken_for])]
    plurals = [_plural(name) for name in names]
    if images > 1 and all(plurals):
        return f"{images:,} {plurals[0]} taken for {plurals[1]}"
    one, other = map(short_name, names)
    return f"{images:,} image{'' if images == 1 else 's'} of {one} taken for {other}"


def _digit(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """``digit=9``, ``'digit=[4,9]'`` or ``digit=cat``: the classes as a command names them."""
    values = []
    for number in numbers:
        name = str(classes[number])
        value = number if name.startswith(f"{number} - ") else name
        values.append(override("digit", value).removeprefix("digit="))
    return quoted(f"digit={values[0]}" if len(values) == 1 else f"digit=[{','.join(values)}]")


def mistakes_of(results: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Mistakes learnt and held out: right with the base, right now, and how many there are."""
    counts = {}
    for split, name in (("mistakes", "learnt"), ("mistakes_test", "held out")):
        if f"{split}_base" in results:
            total = sum(results[split]["images_per_class"])
            before, after = (total - results[s]["errors"] for s in (f"{split}_base", split))
            counts[name] = (before, after, total)
    return counts


def _mended(results: Mapping[str, Any]) -> list[Phrase]:
    """How many mistakes are right before and after; empty where there are none."""
    phrases = []
    splits = ("mistakes", "mistakes_test")
    for (name, counts), split in zip(mistakes_of(results).items(), splits, strict=False):
        before, after, total = counts
        is_chance = results[split]["p_value"] > LEVEL
        mood = "plain" if is_chance else "good" if after > before else "bad"
        text = f"mistakes {name}: {before:,} right -> {after:,} of {total:,};"
        phrases.append(Phrase(text, mood))
    return phrases


def _changes(results: Mapping[str, Any]) -> list[Phrase]:
    """Errors before and after: on the classes to repair and the others, or where most changed."""
    classes, test = results["classes"], results["test"]
    before, after = (of["errors_per_class"] for of in (started_from(results), results["test"]))
    repaired, broken = test["repaired_per_class"], test["broken_per_class"]

    def change(name: str, numbers: Sequence[int], unit: str, with_broken: bool = True) -> Phrase:
        start, end, lost = (sum(counts[c] for c in numbers) for counts in (before, after, broken))
        unit = unit if start != 1 else unit.removesuffix("s")
        notes = [f"broken {lost:,}"] if lost and with_broken else []
        p_value, mood = mcnemar(sum(repaired[c] for c in numbers), lost), "plain"
        if start != end and p_value > LEVEL:
            notes.append(f"may be chance, {p_text(p_value)}")
        elif start != end:
            mood = "good" if end < start else "bad"
        more = f" ({', '.join(notes)})" if notes else ""
        return Phrase(f"{name}: {start:,}{unit} -> {end:,}{more}", mood)

    if targets := targets_of(results):
        phrases = [change(named(classes, targets), targets, " errors", with_broken=False)]
        if rest := [c for c in range(len(classes)) if c not in targets]:
            phrases.append(change(_others(classes), rest, ""))
    else:
        name = "test images" if mistakes_of(results) else "all classes"
        phrases = [change(name, range(len(classes)), " errors")]
        changes = counts_per_class(results)["change"]
        for most, word, mood in ((min(changes), "better", "good"), (max(changes), "worse", "bad")):
            c = changes.index(most)
            # Of so many classes one would be the most changed by chance, too (Bonferroni).
            is_more = mcnemar(repaired[c], broken[c]) * len(classes) <= LEVEL
            if is_more and (most < 0) == (word == "better"):
                text = f"the {named(classes, [c])} got {word} ({before[c]:,} -> {after[c]:,})"
                phrases.append(Phrase(text, mood))
    ends = [";" if targets else ","] * (len(phrases) - 1) + [":"]
    return [Phrase(text + end, mood) for (text, mood), end in zip(phrases, ends, strict=True)]


def _judgement(results: Mapping[str, Any]) -> list[Phrase]:
    """Whether the repair was worth it, and what to do if it was not."""
    test, start = results["test"], started_from(results)["errors"]
    images, more = test["images_per_class"], test["errors"] - start
    changes = counts_per_class(results)["change"]
    repaired = targets_of(results) or [changes.index(min(changes))]
    rest = [c for c in range(len(images)) if c not in repaired]
    wrong, total = sum(test["errors_per_class"][c] for c in rest), sum(images[c] for c in rest)
    others = _others(results["classes"])
    if total and (total - wrong) * len(images) <= total:
        text = f"{wrong:,} of {total:,} images of {others} are wrong, no better than guessing."
        said = [Phrase(text, "bad")]
    elif (results.get("dial") or {}).get("saved") == 0:
        said = [Phrase("the adapter was turned off: no scale leaves fewer validation errors.")]
    elif not more:
        return [Phrase(f"as many errors as before, {start:,}.")]
    elif test["p_value"] > LEVEL:
        counts = f"{test['repaired']:,} repaired, {test['broken']:,} broken"
        return [Phrase(f"{counts}: {chance_text(test['p_value'])}.")]
    elif more < 0:
        left = f"{test['errors']:,} of {start:,} errors left."
        return [Phrase(left if test["errors"] else "no error is left.", "good")]
    elif mistakes_of(results):
        said = [Phrase(f"mending them cost {more:,} test errors.")]
    else:
        said = [Phrase("the repair did more harm than good.", "bad")]
    said += _dial(results)
    if targets_of(results) and results.get("stage") == "lora":
        if results.get("replay") == 0:
            advice = f"`experiment=repair` replays {others}."
        elif (results.get("target_weight") or 1) > 0.2:
            advice = f"`loss.target_weight=0.2` repairs less, and breaks less of {others}."
        else:
            advice = "`stage=finetune digit=null data.batch_size=100` trains on instead."
        said.append(Phrase(advice, "advice"))
    return said


def _dial(results: Mapping[str, Any]) -> list[Phrase]:
    """What the validation images say of the adapter at another scale than the tested one."""
    dial = results.get("dial")
    if not dial or dial["advised"] == dial["saved"]:
        return []
    if dial["advised"] == 0:
        return [Phrase("No smaller scale leaves fewer validation errors than the base.")]
    scale = dial["advised"] / dial["saved"]
    parts = {"all classes": "errors"}
    if targets := targets_of(results):
        classes = results["classes"]
        parts = {named(classes, targets): "errors_of_target", _others(classes): "errors_elsewhere"}
    changes = []
    for name, key in parts.items():
        before, after = (dial[key][dial["scales"].index(s)] for s in (0, dial["advised"]))
        changes.append(f"{name} {before:,} -> {after:,}")
    return [
        Phrase(f"At {scale:g} of its size ({', '.join(changes)} validation errors):"),
        Phrase(f"`eval.py adapter=latest scale={scale:g}`.", "advice"),
    ]
