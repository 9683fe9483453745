"""What a run found, in sentences: pure functions from ``results.json`` to text.

Numbers have thousands separators; classes are called as people call them, ``nines`` for MNIST's
``9 - nine``, and ``images of cat`` where a name is not known to have a plural.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.classifier.significance import LEVEL, chance_text, mcnemar, p_text, wilson
from lora_mnist.sweep.command import override, quoted

_DIGITS = {"0": "zeros", "1": "ones", "2": "twos", "3": "threes", "4": "fours"}
_DIGITS |= {"5": "fives", "6": "sixes", "7": "sevens", "8": "eights", "9": "nines"}


class Phrase(NamedTuple):
    """A part of a sentence, and its mood: ``good``, ``bad``, ``plain``, or ``advice``."""

    text: str
    mood: str = "plain"


class Change(NamedTuple):
    """What became of some images: how many were wrong before, and are wrong now."""

    before: int
    after: int
    repaired: int
    broken: int
    images: int

    @property
    def p_value(self) -> float:
        """How likely chance is to share out so many changed images at least as unevenly."""
        return mcnemar(self.repaired, self.broken)

    @property
    def mood(self) -> str:
        """``good`` or ``bad``; what chance explains is neither."""
        if self.p_value > LEVEL:
            return "plain"
        return "good" if self.after < self.before else "bad"


class Row(NamedTuple):
    """A line of the table of classes; ``cells`` by title, ``mood`` is that of the change."""

    name: str
    classes: list[int]
    cells: dict[str, Any]
    mood: str
    is_target: bool


# --- numbers --------------------------------------------------------------------------------------


def targets_of(results: Mapping[str, Any]) -> list[int]:
    """The classes to repair, by number."""
    digit = results.get("digit")
    return [digit] if isinstance(digit, int) else list(digit or [])


def started_from(results: Mapping[str, Any], split: str = "test") -> Any:
    """What a repair is compared with: the base, or for an adapter on others the base with those.

    A base alone is compared with itself.
    """
    base = results.get(f"{split}_base", results[split])
    return results.get(f"{split}_before", base)


def start_name(results: Mapping[str, Any]) -> str:
    """What figures and sentences call :func:`started_from`."""
    return "before" if "test_before" in results else "base"


def change_of(
    results: Mapping[str, Any], classes: Sequence[int] | None = None, split: str = "test"
) -> Change:
    """What became of the images of some classes, or of all."""
    before, after = started_from(results, split), results[split]
    numbers = range(len(after["errors_per_class"])) if classes is None else classes

    def total(counts: Sequence[int]) -> int:
        return sum(counts[c] for c in numbers)

    return Change(
        before=total(before["errors_per_class"]),
        after=total(after["errors_per_class"]),
        repaired=total(after["repaired_per_class"]) if after is not before else 0,
        broken=total(after["broken_per_class"]) if after is not before else 0,
        images=total(after["images_per_class"]),
    )


def worst_classes(results: Mapping[str, Any], most: int) -> list[int]:
    """At most so many classes, by number: those to repair, then those with the most errors."""
    targets, errors = targets_of(results), results["test"]["errors_per_class"]
    order = sorted(range(len(errors)), key=lambda c: (c not in targets, -errors[c]))
    return sorted(order[:most])


def class_rows(results: Mapping[str, Any], most: int) -> list[Row]:
    """The table of errors, with 95% intervals: a row for each of :func:`worst_classes`, and all."""
    every = range(len(results["test"]["errors_per_class"]))
    own = worst_classes(results, most)
    groups = [(str(results["classes"][c]), [c]) for c in own]
    if rest := [c for c in every if c not in own]:
        groups.append((f"{len(rest)} others", rest))
    is_repair, targets = "test_base" in results, targets_of(results)
    rows = []
    for name, classes in [*groups, ("all", list(every))]:
        change = change_of(results, classes)
        cells: dict[str, Any] = {}
        if is_repair:
            base = sum(results["test_base"]["errors_per_class"][c] for c in classes)
            cells = {"repaired": change.repaired, "broken": change.broken, "base errors": base}
            if "test_before" in results:
                cells["errors before"] = change.before
            cells |= {"errors": change.after, "change": f"{change.after - change.before:+d}"}
        cells["images"] = change.images
        cells.setdefault("errors", change.after)
        low, high = wilson(change.after, change.images)
        cells["errors, 95%"] = f"{low:.0f}-{high:.0f}"
        is_target = is_repair and len(classes) == 1 and classes[0] in targets
        rows.append(Row(name, classes, cells, change.mood, is_target))
    return rows


# --- names ----------------------------------------------------------------------------------------


def short_name(name: object) -> str:
    """``9`` of torchvision's ``9 - nine``."""
    number, _, _ = str(name).partition(" - ")
    return number if number.isdecimal() else str(name)


def named(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """Classes in the plural: ``nines``, ``fours and nines``, ``images of cat``."""
    names = [short_name(classes[number]) for number in numbers]
    are_digits = _DIGITS.keys() >= set(names)
    if are_digits:
        names = [_DIGITS[name] for name in names]
    *first, last = names
    text = f"{', '.join(first)} and {last}" if first else last
    return text if are_digits else f"images of {text}"


def _others(classes: Sequence[str]) -> str:
    are_digits = _DIGITS.keys() >= {short_name(name) for name in classes}
    return "the other digits" if are_digits else "the other classes"


def _digit(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """``digit=9``, ``'digit=[4,9]'`` or ``digit=cat``: the classes as a command names them."""
    values = []
    for number in numbers:
        values.append(override("digit", short_name(classes[number])).removeprefix("digit="))
    return quoted(f"digit={values[0]}" if len(values) == 1 else f"digit=[{','.join(values)}]")


def number_of(count: int, word: str) -> str:
    """``1 error``, ``2,000 errors``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


# --- sentences ------------------------------------------------------------------------------------


def training_sentence(
    stage: str,
    images: int,
    classes: Sequence[str],
    targets: Sequence[int] | None,
    replay: int = 0,
    are_mistakes: bool = False,
) -> str:
    """What a run is about to train, and on what; the line at its start."""
    trained = {"pretrain": "a base", "lora": "an adapter"}.get(stage, "the base's own weights")
    what = named(classes, targets) if targets else f"images of {len(classes)} classes"
    if are_mistakes:
        what = "mistakes"
    replayed = f" and {replay:,} replayed images a step" if replay else ""
    return f"training {trained} on {images:,} {what}{replayed}"


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
    changes, judgement = _changes(results), _judgement(results)
    if judgement[0].mood == "bad":
        changes = [p._replace(mood="plain") if p.mood == "good" else p for p in changes]
    return changes + judgement


def verdict_text(results: Mapping[str, Any]) -> str:
    """:func:`verdict` as plain text."""
    return " ".join(phrase.text for phrase in verdict(results))


def _weakness(results: Mapping[str, Any]) -> list[Phrase]:
    """Where a base alone errs, and how to repair that."""
    classes, errors = results["classes"], results["test"]["errors_per_class"]
    total, worst = change_of(results), errors.index(max(errors))
    said = f"{number_of(total.after, 'error')} in {total.images:,} images"
    if not total.after:
        return [Phrase(f"{said}.", "good")]
    change = change_of(results, [worst])
    return [
        Phrase(f"{said},"),
        Phrase(f"most on the {named(classes, [worst])}: {change.after:,} of {change.images:,}."),
        Phrase(f"`experiment=repair {_digit(classes, [worst])}` repairs them.", "advice"),
    ]


def _changes(results: Mapping[str, Any]) -> list[Phrase]:
    """What was wrong before and after: mistakes, the classes to repair and the others, or all."""
    phrases = []
    for split, name in (("mistakes", "learnt"), ("mistakes_test", "held out")):
        if split in results:
            change = change_of(results, split=split)
            right, now = change.images - change.before, change.images - change.after
            text = f"mistakes {name}: {right:,} right -> {now:,} of {change.images:,}"
            phrases.append(Phrase(text, change.mood))
    classes, targets = results["classes"], targets_of(results)
    groups = {"test images": list(range(len(classes)))}
    if targets:
        groups = {named(classes, targets): targets, _others(classes): _rest(results)}
    for name, numbers in groups.items():
        change, notes = change_of(results, numbers), []
        before = f"{change.before:,}"
        if name != _others(classes):
            before = number_of(change.before, "error")
        if change.broken:
            notes.append(f"broken {change.broken:,}")
        if change.before != change.after and change.mood == "plain":
            notes.append(f"may be chance, {p_text(change.p_value)}")
        more = f" ({', '.join(notes)})" if notes else ""
        phrases.append(Phrase(f"{name}: {before} -> {change.after:,}{more}", change.mood))
    ends = [";"] * (len(phrases) - 1) + [":"]
    return [Phrase(text + end, mood) for (text, mood), end in zip(phrases, ends, strict=True)]


def _judgement(results: Mapping[str, Any]) -> list[Phrase]:
    """Whether the repair was worth it, and what to do if it was not."""
    change, targets = change_of(results), targets_of(results)
    rest = change_of(results, _rest(results))
    others = _others(results["classes"])
    dial = results.get("dial") or {}
    if rest.images and (rest.images - rest.after) * len(results["classes"]) <= rest.images:
        text = f"{rest.after:,} of {rest.images:,} images of {others} are wrong, "
        said = [Phrase(f"{text}no better than guessing.", "bad")]
    elif dial.get("saved") == 0:
        said = [Phrase("the adapter was turned off: no scale leaves fewer validation errors.")]
    elif change.mood == "plain":
        counts = f"{change.repaired:,} repaired, {change.broken:,} broken"
        return [Phrase(f"{counts}: {chance_text(change.p_value)}.")]
    elif change.mood == "good":
        return [Phrase(f"{change.after:,} of {change.before:,} errors left.", "good")]
    elif "mistakes" in results:
        said = [Phrase(f"mending them cost {change.after - change.before:,} test errors.")]
    else:
        said = [Phrase("the repair did more harm than good.", "bad")]
    if dial and dial["advised"] == 0 and dial["saved"]:
        said.append(Phrase("No smaller scale leaves fewer validation errors than the base."))
    elif dial and dial["advised"] != dial["saved"]:
        scale = f"{dial['advised'] / dial['saved']:g}"
        curves = {"all classes": dial["errors"]}
        if targets:
            what = named(results["classes"], targets)
            curves = {what: dial["errors_of_target"], others: dial["errors_elsewhere"]}
        parts = []
        for name, curve in curves.items():
            errors = dict(zip(dial["scales"], curve, strict=True))
            parts.append(f"{name} {errors[0]:,} -> {errors[dial['advised']]:,}")
        said.append(Phrase(f"At {scale} of its size ({', '.join(parts)} validation errors):"))
        said.append(Phrase(f"`eval.py adapter=latest scale={scale}`.", "advice"))
    if targets and results["stage"] == "lora":
        if not results["replay"]:
            advice = f"`experiment=repair` replays {others}."
        elif (results.get("target_weight") or 1) > 0.2:
            advice = f"`loss.target_weight=0.2` repairs less, and breaks less of {others}."
        else:
            advice = "`stage=finetune digit=null data.batch_size=100` trains on instead."
        said.append(Phrase(advice, "advice"))
    return said


def _rest(results: Mapping[str, Any]) -> list[int]:
    """The classes beside those to repair; none where all count alike."""
    targets = targets_of(results)
    return [c for c in range(len(results["classes"])) if targets and c not in targets]


def confusions(results: Mapping[str, Any]) -> dict[str, list[Phrase]]:
    """A line for ``base`` and one for ``adapted``: what they take for what most often.

    That of a base alone, and of a repair without harm, ends in the command that repairs them.
    """
    classes, lines = results["classes"], {}
    sides = {"base": started_from(results)}
    if "test_base" in results:
        sides["adapted"] = results["test"]
    for side, outcome in sides.items():
        texts = [_confusion(classes, **confusion) for confusion in outcome["confusions"]]
        if texts:
            name = start_name(results) if side == "base" else side
            lines[side] = [Phrase(f"largest confusions, {name}: {', '.join(texts)}.")]
    labels = sorted({confusion["label"] for confusion in results["test"]["confusions"]})
    if not labels:
        return lines
    command = f"experiment=repair {_digit(classes, labels)}"
    if "test_base" not in results:
        lines["base"].append(Phrase(f"`{command}` repairs them.", "advice"))
    elif isinstance(results["adapter"], str) and _judgement(results)[0].mood != "bad":
        adapter = "latest" if results["stage"] == "lora" else results["adapter"]
        command += f" {quoted(override('adapter', adapter))}"
        lines["adapted"].append(Phrase(f"`{command}` repairs them.", "advice"))
    return lines


def _confusion(classes: Sequence[str], label: int, taken_for: int, images: int) -> str:
    """``21 fours taken for nines``, or ``1 of the fours taken for nines``."""
    count = f"{images:,}" if images > 1 else "1 of the"
    return f"{count} {named(classes, [label])} taken for {named(classes, [taken_for])}"
