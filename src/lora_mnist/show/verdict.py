"""The verdict: whether to keep a repair, with its gains and losses; or the errors of a base."""

from lora_mnist.lora.point import BASE
from lora_mnist.measure.scale_curve import row_at
from lora_mnist.measure.significance import CLEAR, find_weak
from lora_mnist.show.caveats import find_caveats
from lora_mnist.show.run_results import (
    Change,
    RunResults,
    Sentence,
    format_count,
    format_measure,
    format_p_value,
)

#: The two measures whose mean is mean_accuracy.
_BOTH_ACCURACIES = ("balanced_accuracy", "accuracy")
#: A repair did nothing if fewer images changed than this share of the base's errors.
_LEAST_CHANGED = 0.05
_WORDS = {"better": "is better", "worse": "is worse", "unclear": "has no clear change"}


def describe_run(results: RunResults) -> list[Sentence]:
    """Return the sentences about a run: the most important first, the caveats last."""
    sentences = _describe_repair(results) if results.is_repair else _describe_base(results)
    return [*sentences, *find_caveats(results)]


def _describe_base(results: RunResults) -> list[Sentence]:
    """Return sentences about a base's errors and its weak classes."""
    total, split = results.total_change, results.deciding_split
    counts, name = results.counts[split], {"val": "validation image"}.get(split, "test image")
    errors = format_count(total.after, "error")
    sentences = [Sentence(f"{errors} in {format_count(total.images, 'test image')}.")]
    if counts["errors"]:
        worst = results.weakest_class()
        change = results.change([worst], split)
        errors = f"{format_count(change.after, 'error')} in {format_count(change.images, name)}"
        errors += _describe_top_confusion(results, worst, split)
        sentences.append(
            Sentence(f"The weakest class is {results.name_classes([worst])}: {errors}.")
        )
        if len(every := find_weak(counts["errors_per_class"], counts["images_per_class"])) > 1:
            names = ", ".join(results.classes[c] for c in every)
            sentences.append(Sentence(f"Weaker than the others beyond chance: {names}."))
    return sentences


def _describe_repair(results: RunResults) -> list[Sentence]:
    """Return whether to keep a repair, then a sentence for each group of images it concerns."""
    targets, others = results.targets, results.other_classes
    changes = {c: results.change([c]) for c in results.every}
    sentences = [_describe_mistakes(results)] if results.is_hotfix else []
    sentences.append(_judge_repair(results))
    for c in targets if len(targets) > 1 else ():
        if changes[c].judgement == "worse":
            begin = f"On {results.name_classes([c])}, which was to be repaired"
            sentences.append(_describe_errors(begin, changes[c]))
    sentences += [*_describe_accuracies(results), *_describe_offset(results)]
    sentences.append(_describe_errors("On all test images", results.total_change))
    if results.target_change.images:
        confusion = _describe_top_confusion(results, targets[0]) if len(targets) == 1 else ""
        sentences.append(
            _describe_errors(f"On {results.target_names}", results.target_change, confusion)
        )
        if others:
            sentences.append(_describe_false_positives(results))
    if targets and others:
        sentences.append(
            _describe_errors(f"On {results.other_classes_name}", results.change(others))
        )
    worst = max(others, key=lambda c: changes[c].after - changes[c].before, default=None)
    if worst is not None and others != [worst] and changes[worst].after > changes[worst].before:
        sentences.append(
            _describe_errors(f"Most is lost on {results.name_classes([worst])}", changes[worst])
        )
    return [*sentences, *_advise_more_steps(results)]


def _judge_repair(results: RunResults) -> Sentence:
    """Return the first case that fits. Chance is no reason to keep a repair."""
    name = "the mistakes" if results.is_hotfix else results.target_names
    remedy = _advise(results, name)
    if results.targets and not results.target_change.images:
        return Sentence(f"This repair cannot be judged: no test image is of {name}.")
    if results.point == BASE:
        # A point that the user has set needs no advice.
        was_set = not results.scale_curve or results.advised != BASE
        end = "" if was_set else f" {remedy}"
        return Sentence(f"There is no repair to keep: {_explain_off(results)}.{end}")
    by = _describe_measure(results, results.choose_by)
    is_better = is_reached = results.judge(results.choose_by) == "better"
    if results.is_hotfix:
        mistakes = results.change(split="mistakes")
        is_reached = 2 * mistakes.after <= mistakes.images
    elif results.targets:
        is_reached = results.target_change.judgement == "better"
    if is_better and not is_reached:
        return Sentence(f"Keep this repair, though {name} shows no clear gain: {by}.")
    if is_better and (losses := _describe_losses(results)):
        return Sentence(f"Keep this repair unless {losses} matter more: {by}.")
    if is_better:
        return Sentence(f"Keep this repair: {by}.", "better")
    judgement = results.judge(results.choose_by)
    if is_reached and results.is_hotfix:
        return Sentence(f"Keep this repair for {name} alone: {by}.", judgement)
    if is_reached and judgement == "unclear":
        return Sentence(f"Keep this repair only if errors on {name} matter most: {by}.", judgement)
    return Sentence(f"Do not keep this repair: {by}. {remedy}", judgement)


def _advise(results: RunResults, name: str) -> str:
    """Return advice for a base whose repair is not kept, from the run's results."""
    return f"{_choose_advice(results, name)}. Other causes, and what to try: docs/failed.md."


def _choose_advice(results: RunResults, name: str) -> str:
    """Return the first advice that fits."""
    balanced, accuracy = (results.compare_measure(measure) for measure in _BOTH_ACCURACIES)
    total, rose, fell = results.total_change, balanced[1] > balanced[0], accuracy[1] < accuracy[0]
    # eval tests one point, perhaps a chosen one.
    has_tried = results.steps and not results.is_hotfix
    if has_tried and total.repaired + total.broken < _LEAST_CHANGED * total.before:
        return "Hardly any prediction changed: look at pictures and labels, or train another base"
    if rose and fell and results.choose_by != "accuracy":
        return "Rare classes gain what common ones lose: choose_by=accuracy spares the common ones"
    if results.judge(results.choose_by) == "worse":
        return "It breaks more than it repairs; try a smaller scale"
    more = "mistakes to learn" if results.is_hotfix else f"images of {name}"
    return f"Too little changed to tell: more {more} help more than any key"


def _describe_measure(results: RunResults, measure: str) -> str:
    """Describe the change of a measure on test images, and of the errors, if they rose."""
    chance = format_p_value(results.compare_measure(measure)[2])
    text = f"{_describe_change(results, measure)} ({chance})"
    if results.total_change.after > results.total_change.before:
        errors = format_count(results.total_change.before, "error")
        text += f", with {errors} -> {results.total_change.after:,} in all"
    return text


def _describe_change(results: RunResults, measure: str) -> str:
    """Describe a measure's change on test images: ``accuracy is better, 93.00% -> 95.00%``."""
    before, after, _ = results.compare_measure(measure)
    words = _WORDS[results.judge(measure)]
    return f"{format_measure(measure)} {words}, {before:.2%} -> {after:.2%}"


def _describe_losses(results: RunResults) -> str:
    """Describe losses beyond chance, such as "losses on fours"; "" if there are none."""
    losses = []
    for measure in _BOTH_ACCURACIES:
        if results.judge(measure) == "worse":
            losses.append(f"losses of {format_measure(measure)}")
    if worse := [c for c in results.every if results.change([c]).judgement == "worse"]:
        losses.append(f"losses on {results.name_classes(worse)}")
    if results.other_classes and results.target_change.judgement_of_false_positives == "worse":
        before, after = results.target_change.false_positives
        losses.append(f"{after - before:,} more false positives of {results.target_names}")
    return " and ".join(losses)


def _explain_off(results: RunResults) -> str:
    """Return why the adapter is off, and its counts at scale 1 if validation images chose so."""
    curve, text = results.scale_curve, "the adapter is switched off (scale 0)"
    if not curve or results.advised != BASE:
        return text
    if not results.steps:
        return "nothing was trained (lora.scale=0), and the offset is 0"
    row, counts = row_at(curve, 1), []
    for name, key in results.name_curves().items():
        counts.append(f"{name} {curve['base'][key]:,} -> {row[key]:,}")
    text += ", since it gains nothing on validation images; at scale 1 with the offset "
    return f"{text}{row['offset']:g}: {', '.join(counts)}"


def _describe_accuracies(results: RunResults) -> list[Sentence]:
    """Compare both accuracies, if only one of them got better or worse."""
    if len({results.judge(measure) for measure in _BOTH_ACCURACIES}) == 1:
        return []
    of_classes, of_images = (_describe_change(results, measure) for measure in _BOTH_ACCURACIES)
    text = f"With all classes equally common: {of_classes}; with classes as common as among the "
    return [Sentence(f"{text}test images: {of_images}.")]


def _describe_offset(results: RunResults) -> list[Sentence]:
    """Describe the effect of the offset alone, and what the adapter adds to it."""
    point, curve = results.point, results.scale_curve
    if point is None or not results.targets:
        return []
    if point.scale == 0 and point.offset:
        offset = f"the offset {point.offset:g} on the logit of {results.target_names}"
        if len(results.targets) > 1:
            offset = f"logit adjustment with tau {point.offset:g}"
        text = "The scale is 0"
        if curve and results.advised.scale == 0 and results.steps:
            text = "The training gains nothing on validation images"
        return [Sentence(f"{text}: only {offset} is on. scale=0 offset=0 switches that off, too.")]
    if not curve:
        return []
    key, by = "weighted_accuracy", format_measure(curve["choose_by"])
    alone, trained = row_at(curve, 0), f"{row_at(curve, point.scale)[key]:.1%}"
    change = f"{by} {curve['base'][key]:.1%} -> "
    others = []  # cheaper than trials
    if alone["offset"]:
        others.append(("the offset alone", f"{alone[key]:.1%}"))
    if results.head and not results.is_head:
        others.append(("the last layer alone", f"{results.head[key]:.1%}"))
    if not others:
        return []
    parts: list[str] = []
    for name, share in others:
        parts.append(f"{name}: {'' if parts else change}{share}")
    parts[0] = parts[0].capitalize() + " on validation images"
    parts.append(f"with the {'last layer' if results.is_head else 'training'} {trained}")
    if trained in dict(others).values():
        parts[-1] += ", chosen by its higher score"
    return [Sentence(f"{'; '.join(parts)}.")]


def _describe_errors(begin: str, change: Change, end: str = "") -> Sentence:
    """Return a sentence: ``On nines: 70 errors -> 9 (63 repaired, 2 broken, p < 0.001)``."""
    text = f"{begin}: {format_count(change.before, 'error')} -> {change.after:,}{end}"
    if change.repaired or change.broken:
        chance = format_p_value(change.p_value)
        text += f" ({change.repaired:,} repaired, {change.broken:,} broken, {chance})"
    return Sentence(f"{text}.", change.judgement)


def _describe_top_confusion(results: RunResults, number: int, split: str = "test") -> str:
    """Describe the most frequent wrong prediction: ``, 32 of them predicted as fours``."""
    confusion = results.counts[split]["top_confusion_per_class"][number]
    if confusion is None or confusion[1] < 2:
        return ""
    return f", {confusion[1]:,} of them predicted as {results.name_classes(confusion[:1])}"


def _describe_mistakes(results: RunResults) -> Sentence:
    """Count the mistakes of a hotfix that are right now: those to learn, and those held out."""
    train = results.change(split="mistakes")
    right = f"{train.images - train.after:,} of {train.images:,}"
    text = f"{right} mistakes that were trained on are right now"
    if "mistakes_test" in results.counts:
        test = results.change(split="mistakes_test")
        text += f", and {test.images - test.after:,} of {test.images:,} held out"
    return Sentence(f"{text}.", train.judgement)


def _describe_false_positives(results: RunResults) -> Sentence:
    """Describe the change in false positives and precision of the target."""
    shares = []
    for counts in (results.counts["test_base"], results.counts["test"]):
        share = counts.get("precision_of_target")
        shares.append("none" if share is None else f"{share:.0%}")
    before, after = results.target_change.false_positives
    names = results.target_names if len(results.targets) == 1 else "one of these classes"
    text = f"Images wrongly predicted as {names} (false positives): {before:,} -> "
    text += f"{after:,}; precision {shares[0]} -> {shares[1]}."
    return Sentence(text, results.target_change.judgement_of_false_positives)


def _advise_more_steps(results: RunResults) -> list[Sentence]:
    """Advise more steps where validation errors fell beyond chance in the second half."""
    curve = results.validation_errors
    last_step, last = curve[-1]
    half = next(errors for step, errors in curve if 2 * step >= last_step)
    if half - last <= CLEAR * (half + last) ** 0.5:
        return []
    keys = f"trainer.max_steps={2 * last_step}"
    if results.steps != results.max_steps:
        keys = f"trainer.max_epochs=-1 {keys}"  # epochs have ended it
    return [Sentence(f"Its validation errors were still falling: try {keys}.")]
