"""The verdict: whether to keep a repair, and what it did to whom; or the errors of a base."""

from lora_mnist.lora.point import BASE
from lora_mnist.measure.dial import row_at
from lora_mnist.measure.significance import CLEAR, weak
from lora_mnist.show.belief import doubts
from lora_mnist.show.reading import (
    Change,
    Reading,
    Sentence,
    chance_text,
    name_of_measure,
    number_of,
)

#: The two that mean_accuracy is made of: with all classes equally common, and as in the test.
_ENDS = ("balanced_accuracy", "accuracy")
#: Where fewer images change than this share of the base's errors, a repair did nothing.
_LEAST_CHANGED = 0.05
_WORDS = {"better": "is better", "worse": "is worse", "unclear": "has no clear change"}


def verdict(reading: Reading) -> list[Sentence]:
    """Return the sentences about a run: the most important first, the caveats last."""
    sentences = _of_repair(reading) if reading.is_repair else _of_base(reading)
    return [*sentences, *doubts(reading)]


def _of_base(reading: Reading) -> list[Sentence]:
    """Return sentences about a base's errors and its weak classes."""
    total, part = reading.total, reading.deciding_part
    counts, name = reading.counts[part], {"val": "validation image"}.get(part, "test image")
    errors = number_of(total.after, "error")
    sentences = [Sentence(f"{errors} in {number_of(total.images, 'test image')}.")]
    if counts["errors"]:
        worst = reading.weakest_class()
        change, called = reading.change([worst], part), _mostly_called(reading, worst, part)
        errors = f"{number_of(change.after, 'error')} in {number_of(change.images, name)}{called}"
        sentences.append(Sentence(f"The weakest class is {reading.named([worst])}: {errors}."))
        if len(every := weak(counts["errors_per_class"], counts["images_per_class"])) > 1:
            names = ", ".join(reading.classes[c] for c in every)
            sentences.append(Sentence(f"Weaker than the others beyond chance: {names}."))
    return sentences


def _of_repair(reading: Reading) -> list[Sentence]:
    """Return whether to keep a repair, then a sentence for each group of images it concerns."""
    targets, others = reading.targets, reading.other_classes
    changes = {c: reading.change([c]) for c in reading.every}
    sentences = [_mistakes(reading)] if reading.is_hotfix else []
    sentences.append(_whether_to_keep(reading))
    for c in targets if len(targets) > 1 else ():
        if changes[c].judgement == "worse":
            begin = f"On {reading.named([c])}, which was to be repaired"
            sentences.append(_errors_on(begin, changes[c]))
    sentences += [*_of_mixes(reading), *_of_offset(reading)]
    sentences.append(_errors_on("On all test images", reading.total))
    if reading.of_targets.images:
        called = _mostly_called(reading, targets[0]) if len(targets) == 1 else ""
        sentences.append(_errors_on(f"On {reading.target_names}", reading.of_targets, called))
        if others:
            sentences.append(_false_calls(reading))
    if targets and others:
        sentences.append(_errors_on(f"On {reading.name_of_others}", reading.change(others)))
    worst = max(others, key=lambda c: changes[c].after - changes[c].before, default=None)
    if worst is not None and others != [worst] and changes[worst].after > changes[worst].before:
        sentences.append(_errors_on(f"Most is lost on {reading.named([worst])}", changes[worst]))
    return [*sentences, *_still_falling(reading)]


def _whether_to_keep(reading: Reading) -> Sentence:
    """Return the first case that fits. Chance is no reason to keep a repair."""
    name = "the mistakes" if reading.is_hotfix else reading.target_names
    remedy = _remedy(reading, name)
    if reading.targets and not reading.of_targets.images:
        return Sentence(f"Nothing judges this repair: no test image is of {name}.")
    if reading.point == BASE:
        is_typed = not reading.dial or reading.advised != BASE  # then nothing is to be mended
        end = "" if is_typed else f" {remedy}"
        return Sentence(f"There is no repair to keep: {_why_off(reading)}.{end}")
    by = _measured(reading, reading.choose_by)
    is_better = is_reached = reading.judgement_of(reading.choose_by) == "better"
    if reading.is_hotfix:
        mistakes = reading.change(part="mistakes")
        is_reached = 2 * mistakes.after <= mistakes.images
    elif reading.targets:
        is_reached = reading.of_targets.judgement == "better"
    if is_better and not is_reached:
        return Sentence(f"Keep this repair, though not for {name}: {by}.")
    if is_better and (losses := _losses(reading)):
        return Sentence(f"Keep this repair unless {losses} matter more: {by}.")
    if is_better:
        return Sentence(f"Keep this repair: {by}.", "better")
    judgement = reading.judgement_of(reading.choose_by)
    if is_reached and reading.is_hotfix:
        return Sentence(f"Keep this repair for {name} alone: {by}.", judgement)
    if is_reached and judgement == "unclear":
        return Sentence(f"Keep this repair only if errors on {name} matter most: {by}.", judgement)
    return Sentence(f"Do not keep this repair: {by}. {remedy}", judgement)


def _remedy(reading: Reading, name: str) -> str:
    """Return advice for a base whose repair is not kept, from the run's results."""
    return f"{_first_remedy(reading, name)}. Other causes, and what to try: docs/failed.md."


def _first_remedy(reading: Reading, name: str) -> str:
    """Return the first advice that fits."""
    balanced, accuracy = (reading.measured(measure) for measure in _ENDS)
    total, rose, fell = reading.total, balanced[1] > balanced[0], accuracy[1] < accuracy[0]
    # eval tests one point, perhaps a typed one.
    has_tried = reading.steps and not reading.is_hotfix
    if has_tried and total.repaired + total.broken < _LEAST_CHANGED * total.before:
        return "Nothing moves this base: look at its pictures and labels, or train another one"
    if rose and fell and reading.choose_by != "accuracy":
        return "Rare classes gain what common ones lose: choose_by=accuracy spares the common ones"
    if reading.judgement_of(reading.choose_by) == "worse":
        return "It costs more than it mends; a smaller scale may not"
    more = "mistakes to learn" if reading.is_hotfix else f"images of {name}"
    return f"Too little changed to tell: more {more} help more than any key"


def _measured(reading: Reading, measure: str) -> str:
    """Describe the change of a measure on test images, and of the errors, if they rose."""
    text = f"{_change_of(reading, measure)} ({chance_text(reading.measured(measure)[2])})"
    if reading.total.after > reading.total.before:
        errors = number_of(reading.total.before, "error")
        text += f", with {errors} -> {reading.total.after:,} in all"
    return text


def _change_of(reading: Reading, measure: str) -> str:
    """Describe a measure's change on test images: ``accuracy is better, 93.00% -> 95.00%``."""
    before, after, _ = reading.measured(measure)
    words = _WORDS[reading.judgement_of(measure)]
    return f"{name_of_measure(measure)} {words}, {before:.2%} -> {after:.2%}"


def _losses(reading: Reading) -> str:
    """Describe losses beyond chance, such as "losses on fours"; "" if there are none."""
    losses = []
    for measure in _ENDS:
        if reading.judgement_of(measure) == "worse":
            losses.append(f"losses of {name_of_measure(measure)}")
    if worse := [c for c in reading.every if reading.change([c]).judgement == "worse"]:
        losses.append(f"losses on {reading.named(worse)}")
    if reading.other_classes and reading.of_targets.judgement_of_false_calls == "worse":
        before, after = reading.of_targets.false_calls
        losses.append(f"{after - before:,} more false calls of {reading.target_names}")
    return " and ".join(losses)


def _why_off(reading: Reading) -> str:
    """Say, if validation images did so, that the adapter is off and what it would do."""
    dial, text = reading.dial, "the adapter is turned off (scale 0)"
    if not dial or reading.advised != BASE:
        return text
    if not reading.steps:
        return "nothing was trained (lora.scale=0), and the offset is 0"
    row, counts = row_at(dial, 1), []
    for name, key in reading.curves().items():
        counts.append(f"{name} {dial['base'][key]:,} -> {row[key]:,}")
    text += ", since it gains nothing on validation images; at scale 1 with the offset "
    return f"{text}{row['offset']:g}: {', '.join(counts)}"


def _of_mixes(reading: Reading) -> list[Sentence]:
    """For which mix of classes a repair is better or worse, where that is not the same."""
    if len({reading.judgement_of(measure) for measure in _ENDS}) == 1:
        return []
    of_classes, of_images = (_change_of(reading, measure) for measure in _ENDS)
    text = f"With all classes equally common: {of_classes}; with classes as common as among the "
    return [Sentence(f"{text}test images: {of_images}.")]


def _of_offset(reading: Reading) -> list[Sentence]:
    """Describe the effect of the offset alone, and what the adapter adds to it."""
    point, dial = reading.point, reading.dial
    if point is None or not reading.targets:
        return []
    if point.scale == 0 and point.offset:
        offset = f"the offset {point.offset:g} on the logit of {reading.target_names}"
        if len(reading.targets) > 1:
            offset = f"logit adjustment with tau {point.offset:g}"
        text = "The scale is 0"
        if dial and reading.advised.scale == 0 and reading.steps:
            text = "The training adds nothing that validation images show"
        return [Sentence(f"{text}: only {offset} is on. scale=0 offset=0 turns that off, too.")]
    if not dial:
        return []
    key, by = "weighted_accuracy", name_of_measure(dial["choose_by"])
    alone, trained = row_at(dial, 0), f"{row_at(dial, point.scale)[key]:.1%}"
    change = f"{by} {dial['base'][key]:.1%} -> "
    others = []  # cheaper than the trainings of the trials
    if alone["offset"]:
        others.append(("the offset alone", f"{alone[key]:.1%}"))
    if reading.head and not reading.is_head:
        others.append(("the last layer alone", f"{reading.head[key]:.1%}"))
    if not others:
        return []
    parts: list[str] = []
    for name, share in others:
        parts.append(f"{name}: {'' if parts else change}{share}")
    parts[0] = parts[0].capitalize() + " on validation images"
    parts.append(f"with the {'last layer' if reading.is_head else 'training'} {trained}")
    if trained in dict(others).values():
        parts[-1] += ", at a higher score, which decides"
    return [Sentence(f"{'; '.join(parts)}.")]


def _errors_on(begin: str, change: Change, end: str = "") -> Sentence:
    """Return a sentence: ``On nines: 70 errors -> 9 (63 repaired, 2 broken, p < 0.001)``."""
    text = f"{begin}: {number_of(change.before, 'error')} -> {change.after:,}{end}"
    if change.repaired or change.broken:
        chance = chance_text(change.p_value)
        text += f" ({change.repaired:,} repaired, {change.broken:,} broken, {chance})"
    return Sentence(f"{text}.", change.judgement)


def _mostly_called(reading: Reading, number: int, part: str = "test") -> str:
    """Return which class most errors of a class are called: ``, 32 of them called fours``."""
    called = reading.counts[part]["called_per_class"][number]
    if called is None or called[1] < 2:
        return ""
    return f", {called[1]:,} of them called {reading.named(called[:1])}"


def _mistakes(reading: Reading) -> Sentence:
    """Count the mistakes of a hotfix that are right now: those to learn, and those held out."""
    train = reading.change(part="mistakes")
    text = f"{train.images - train.after:,} of {train.images:,} mistakes to learn are right now"
    if "mistakes_test" in reading.counts:
        test = reading.change(part="mistakes_test")
        text += f", and {test.images - test.after:,} of {test.images:,} held out"
    return Sentence(f"{text}.", train.judgement)


def _false_calls(reading: Reading) -> Sentence:
    """Return how many images of other classes are called one of those to repair."""
    shares = []
    for counts in (reading.counts["test_base"], reading.counts["test"]):
        share = counts.get("precision_of_target")
        shares.append("none" if share is None else f"{share:.0%}")
    before, after = reading.of_targets.false_calls
    names = reading.target_names if len(reading.targets) == 1 else "one of these classes"
    text = f"Images wrongly called {names} (false calls): {before:,} -> "
    text += f"{after:,}; precision {shares[0]} -> {shares[1]}."
    return Sentence(text, reading.of_targets.judgement_of_false_calls)


def _still_falling(reading: Reading) -> list[Sentence]:
    """Advise more steps where validation errors fell beyond chance in the second half."""
    curve = reading.validation_errors
    last_step, last = curve[-1]
    half = next(errors for step, errors in curve if 2 * step >= last_step)
    if half - last <= CLEAR * (half + last) ** 0.5:
        return []
    keys = f"trainer.max_steps={2 * last_step}"
    if reading.steps != reading.max_steps:
        keys = f"trainer.max_epochs=-1 {keys}"  # epochs have ended it
    return [Sentence(f"Its validation errors were still falling: try {keys}.")]
