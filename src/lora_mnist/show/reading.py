"""Every question about results.json: changes, the table of classes, the verdict, what to do next.

Screen, report and loggers ask here. Sweeps read numbers by their keys.
"""

from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.choice import KEY_OF, line_of
from lora_mnist.config.run import in_grammar, key_of
from lora_mnist.measure.gain import MEASURES, gain, p_value
from lora_mnist.measure.significance import (
    LEVEL,
    chance_text,
    expected_errors,
    knows_validation,
    mcnemar,
    other_mix,
    precision,
    weak,
    weakest,
    wilson,
)
from lora_mnist.project import command_line

_DIGITS = {"0": "zeros", "1": "ones", "2": "twos", "3": "threes", "4": "fours"}
_DIGITS |= {"5": "fives", "6": "sixes", "7": "sevens", "8": "eights", "9": "nines"}
#: More names than these would fill the line.
_MAX_NAMES = 4
#: A longer table would push the verdict off the screen; results.json has every class.
_MAX_ROWS = 12
#: How overrides begin that say which images, network and base: the next command repeats them.
_REPEATED = ("--config-dir", "classifier", "data", "prepare", "net", "paths", "base_")


class Phrase(NamedTuple):
    """A sentence and its judgement: ``better``, ``worse`` or ``unclear``."""

    text: str
    judgement: str = "unclear"


def _judged(fewer: int, more: int) -> str:
    """``better`` or ``worse``; ``unclear`` where the difference may be chance."""
    if mcnemar(fewer, more) > LEVEL:
        return "unclear"
    return "better" if fewer > more else "worse"


class FalseCalls(NamedTuple):
    """How often images get the name of some class that is not theirs, around a repair."""

    before: int
    after: int

    @property
    def judgement(self) -> str:
        """As if no image were among both, which is the cautious way to compare them."""
        return _judged(self.before, self.after)


class Change(NamedTuple):
    """The errors in the images of some classes, and the false calls of these, around a repair."""

    before: int
    after: int
    repaired: int
    broken: int
    images: int
    false_calls: FalseCalls

    @property
    def judgement(self) -> str:
        """``better`` or ``worse``; ``unclear`` where the change may be chance."""
        return _judged(self.repaired, self.broken)

    def sentence(self, name: str, end: str = "") -> Phrase:
        """A sentence: ``On nines: 70 errors -> 9 (63 repaired, 2 broken, p < 0.001)``."""
        text = f"{name}: {number_of(self.before, 'error')} -> {self.after:,}{end}"
        if self.repaired or self.broken:
            chance = chance_text(mcnemar(self.repaired, self.broken))
            text += f" ({self.repaired:,} repaired, {self.broken:,} broken, {chance})"
        return Phrase(f"{text}.", self.judgement)


class Row(NamedTuple):
    """A line of the table of classes: a class, several, or all, and its cells by title."""

    name: str
    classes: Sequence[int]
    change: Change
    cells: dict[str, Any]
    is_target: bool


class Reading:
    """The answers that results.json has about the test of a base, or about a repair of one."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.classes: list[str] = results["classes"]
        self.targets: list[int] = results["targets"]
        self.every = list(range(len(self.classes)))
        self.other_classes = [c for c in self.every if c not in self.targets]
        self.is_repair = results["stage"] == "lora" or bool(results["adapter"])
        #: The counts of each part, as :func:`.predictions.outcomes_by_part` names them.
        self.counts: dict[str, Mapping[str, Any]] = {}
        for name, value in results.items():
            if isinstance(value, Mapping) and "errors_per_class" in value:
                self.counts[name] = value
        self.is_hotfix = "mistakes" in self.counts
        self.steps: int = results["steps"]
        self.choices: Mapping[str, Mapping[str, Any]] = results.get("choices") or {}
        #: What decides, and whether to keep a repair: ``balanced_accuracy`` or ``accuracy``.
        self.choose_by: str = results["choose_by"]
        #: What :func:`.dial.dial_curve` returned for validation images; empty without a dial.
        self.dial: Mapping[str, Any] = results.get("dial") or {}
        self.target_names = self.named(self.targets) if self.targets else ""
        self.total = self.change()
        self.of_targets = self.change(self.targets)

    def change(self, classes: Sequence[int] | None = None, part: str = "test") -> Change:
        """The change in images of some classes, or of all; a base alone is compared with itself."""
        after = self.counts[part]
        before = self.counts.get(f"{part}_base", after)
        numbers = self.every if classes is None else classes

        def total(counts: Mapping[str, Any], key: str) -> int:
            per_class = counts.get(f"{key}_per_class") or [0] * len(self.classes)
            return sum(per_class[c] for c in numbers)

        return Change(
            before=total(before, "errors"),
            after=total(after, "errors"),
            repaired=total(after, "repaired"),
            broken=total(after, "broken"),
            images=total(after, "images"),
            false_calls=FalseCalls(total(before, "false_calls"), total(after, "false_calls")),
        )

    def weakest_class(self) -> int:
        """The weakest class on the test images, by number."""
        test = self.counts["test"]
        return weakest(test["errors_per_class"], test["images_per_class"])

    # --- names ------------------------------------------------------------------------------------

    def named(self, numbers: Sequence[int]) -> str:
        """Classes in a sentence: ``fours and nines``, ``cat and dog``, ``12 classes``."""
        names = [self.classes[number] for number in numbers]
        if len(names) > _MAX_NAMES:
            return f"{len(names)} classes"
        if _DIGITS.keys() >= set(names):
            names = [_DIGITS[name] for name in names]
        *first, last = names
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def name_of_others(self) -> str:
        """The words for all classes but those to repair."""
        return "the other digits" if _DIGITS.keys() >= set(self.classes) else "the other classes"

    # --- the table of classes ---------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """A row for each class and one for all; of many classes those that changed most."""
        numbers = self.every
        if len(numbers) >= _MAX_ROWS:

            def size(number: int) -> tuple[int, int]:
                change = self.change([number])
                return change.repaired + change.broken, change.after

            others = sorted(self.other_classes, key=size, reverse=True)
            numbers = [*self.targets, *others][: _MAX_ROWS - 2]
        groups: list[tuple[str, Sequence[int]]] = [(self.classes[c], [c]) for c in numbers]
        if rest := [c for c in self.every if c not in numbers]:
            groups.append((f"{len(rest)} others", rest))
        rows = []
        for name, group in [*groups, ("all", self.every)]:
            change = self.change(group)
            cells: dict[str, Any] = {"errors": self._pair(change.before, change.after)}
            if self.is_repair:
                cells |= {"repaired": change.repaired, "broken": change.broken}
            cells["false calls"] = ""
            if len(group) == 1:  # of several, some are given the name of another in the row
                cells["false calls"] = self._pair(*change.false_calls)
            low, high = wilson(change.after, change.images)
            cells |= {"images": change.images, "95% interval": f"{low:.0f}-{high:.0f}"}
            is_target = self.is_repair and len(group) == 1 and group[0] in self.targets
            rows.append(Row(name, group, change, cells, is_target))
        return rows

    def accuracy(self, measure: str = "accuracy") -> str:
        """``0.9432 -> 0.9788`` on the test images, or of a base ``0.9432``."""
        after = self.counts["test"]
        before = self.counts.get("test_base", after)
        return self._pair(f"{before[measure]:.4f}", f"{after[measure]:.4f}")

    def accuracies(self) -> str:
        """Both accuracies, of images and of classes."""
        balanced = self.accuracy("balanced_accuracy")
        return f"{self.accuracy()}; balanced, the mean over classes: {balanced}"

    def _pair(self, before: object, after: object) -> str:
        """A number before and after a repair, or of a base alone."""
        return f"{before} -> {after}" if self.is_repair else str(after)

    # --- the verdict ------------------------------------------------------------------------------

    def verdict(self) -> list[Phrase]:
        """Whether to keep a repair, then what it changed, and for whom; or the errors of a base."""
        phrases = self._of_repair() if self.is_repair else self._of_base()
        val, test = self.counts.get("val_base"), self.counts.get("test_base")
        decided = [name for name, choice in self.choices.items() if choice["images"]]
        if decided and val and test and knows_validation(val, test):
            expected, _ = expected_errors(val, test)
            text = f"The base has {val['errors']:,} validation images wrong; at its error rates on "
            text += f"test images, class by class, it would be {expected:,.0f}. Unless the test "
            text += "images are of a harder kind, it was trained on the others, and what these "
            text += f"decided may be wrong: {', '.join(decided)}."
            if self.results["val_from"] == "train" and "test" not in self.results["held_out"]:
                text += " data.val_from=test takes them from the test images, of which fewer are "
                text += "left to test on."
            phrases.append(Phrase(text))
        if "test" in self.results["held_out"] and "base" in self.results["learnt_unknown"]:
            text = "The test images were held out of this folder just now: if the base was trained "
            phrases.append(Phrase(f"{text}on the whole folder, they prove nothing."))
        return phrases

    def verdict_text(self) -> str:
        """The verdict as plain text."""
        return " ".join(phrase.text for phrase in self.verdict())

    def _of_base(self) -> list[Phrase]:
        """The errors of a base alone."""
        errors = number_of(self.total.after, "error")
        phrases = [Phrase(f"{errors} in {self.total.images:,} test images.")]
        if self.total.after:
            worst = self.weakest_class()
            change = self.change([worst])
            text = f"The weakest class is {self.named([worst])}: "
            text += f"{number_of(change.after, 'error')} in {change.images:,}"
            phrases.append(Phrase(f"{text}{self.mostly_called(worst)}."))
            test = self.counts["test"]
            if len(every := weak(test["errors_per_class"], test["images_per_class"])) > 1:
                names = ", ".join(self.classes[c] for c in every)
                phrases.append(Phrase(f"Weaker than the others beyond chance: {names}."))
        return phrases

    def mostly_called(self, number: int) -> str:
        """What most errors of a class on test images are called: ``, 32 of them called fours``."""
        called = self.counts["test"]["called_per_class"][number]
        if called is None:
            return ""
        other, count = called
        return f", {count:,} of them called {self.named([other])}" if count > 1 else ""

    def _of_repair(self) -> list[Phrase]:
        """The judgement, then a sentence for each group of images that the repair concerns."""
        is_kept, judgement = self._judgement()
        phrases = [self._mistakes(), judgement] if self.is_hotfix else [judgement]
        if self.results["scale"] == self.dial.get("advised") == 0 and self.results["offset"]:
            offset = f"the offset {self.results['offset']:g} on the logit of {self.target_names}"
            if len(self.targets) > 1:
                offset = f"logit adjustment with tau {self.results['offset']:g}"
            text = "The training adds nothing that validation images show: what is saved is"
            phrases.append(Phrase(f"{text} {offset} alone."))
        phrases += self._of_mixes()
        phrases.append(self.total.sentence("On all test images"))
        if self.of_targets.images:
            called = self.mostly_called(self.targets[0]) if len(self.targets) == 1 else ""
            phrases.append(self.of_targets.sentence(f"On {self.target_names}", called))
            if self.other_classes:
                phrases.append(self._false_calls())
        if self.targets and self.other_classes:
            phrases.append(self.change(self.other_classes).sentence(f"On {self.name_of_others}"))
        changes = {c: self.change([c]) for c in self.other_classes}
        worst = max(changes, key=lambda c: changes[c].after - changes[c].before, default=None)
        if worst is None or changes[worst].after <= changes[worst].before:
            if self.targets and len(self.other_classes) > 1:
                phrases.append(Phrase("No other class has more errors than before."))
        elif self.other_classes != [worst]:
            phrases.append(changes[worst].sentence(f"Most is lost on {self.named([worst])}"))
        if text := self._still_falling():
            phrases.append(Phrase(text))
        if not is_kept:
            phrases.append(Phrase("What it means, and what to try next: docs/failed.md."))
        return phrases

    def judgement_of(self, measure: str) -> str:
        """What became of a measure on test images, as :attr:`Change.judgement`."""
        test = self.counts["test"]
        if measure == "accuracy" or "repaired_per_class" not in test:
            return self.total.judgement
        repaired, broken = test["repaired_per_class"], test["broken_per_class"]
        images = test["images_per_class"]
        if p_value(repaired, broken, images, measure) > LEVEL:
            return "unclear"
        saved, _ = gain(repaired, broken, images, measure)
        return "better" if saved > 0 else "worse"

    def _of_mixes(self) -> list[Phrase]:
        """For which mix of classes a repair is better or worse, where that is not the same."""
        judgements = [self.judgement_of(measure) for measure in MEASURES]
        if len(set(judgements)) == 1:
            return []
        words = {"better": "better", "worse": "worse", "unclear": "no clear change"}
        of_classes, of_images = (words[judgement] for judgement in judgements)
        text = f"With all classes equally common it is {of_classes} (balanced accuracy "
        text += f"{self.accuracy('balanced_accuracy')}); with classes as common as among the test "
        text += f"images it is {of_images} (accuracy {self.accuracy()})."
        return [Phrase(text)]

    def _still_falling(self) -> str:
        """What to do where validation errors fell beyond chance in a training's second half."""
        curve: list[list[int]] = self.results.get("validation_errors") or [[0, 0]]
        last_step, last = curve[-1]
        half = next(errors for step, errors in curve if 2 * step >= last_step)
        if half - last <= 2 * (half + last) ** 0.5:
            return ""
        return f"Its validation errors were still falling: try trainer.max_steps={2 * last_step}."

    def _price(self) -> str:
        """What a repair costs beyond chance, such as "the loss on fours matters"; "": nothing."""
        reasons = []
        if self.targets and self.other_classes and self.of_targets.images:
            calls = self.of_targets.false_calls
            if calls.judgement == "worse":
                more = calls.after - calls.before
                reasons.append(f"{more:,} more false calls of {self.target_names}")
        worse = [c for c in self.other_classes if self.change([c]).judgement == "worse"]
        if len(worse) == 1:
            reasons.append(f"the loss on {self.named(worse)}")
            if len(reasons) == 1:
                return f"{reasons[0]} matters"
        elif worse:
            others = len(self.other_classes)
            reasons.append(f"losses beyond chance on {len(worse)} of {others} other classes")
        return f"{' and '.join(reasons)} matter" if reasons else ""

    def _judgement(self) -> tuple[bool, Phrase]:
        """Whether to keep a repair, and why: the first case that fits. Chance is no reason."""
        judgement = self.judgement_of(self.choose_by)
        fewer, more = judgement == "better", judgement == "worse"
        name, price, is_mended = self.target_names, self._price(), False
        is_reached = self.of_targets.judgement == "better" if self.targets else fewer
        if self.is_hotfix:
            name, mistakes = "the mistakes", self.change(part="mistakes")
            is_reached = is_mended = 2 * mistakes.after <= mistakes.images
        is_untested = bool(self.targets) and not self.of_targets.images
        is_off = self.results["scale"] == 0 and not self.results["offset"]
        keep, drop = "Keep this repair", "Do not keep this repair"
        gain, loss = "there is no clear gain in all.", "there is no clear loss in all."
        less, worse = "there are fewer errors in all.", "there are more errors in all."
        if judgement != self.total.judgement:
            less = worse = f"balanced accuracy is {self.accuracy('balanced_accuracy')}."
        off = "There is no repair to keep: the adapter is turned off (scale 0)"
        if self.dial and self.dial["advised"] == 0:
            place = self.dial["scales"].index(1)
            off += f", since it gains nothing on validation images; scale 1 {self._at(place)}"
        cases = (
            (is_untested, True, Phrase(f"No test image is of {name}: nothing judges the repair.")),
            (is_off, False, Phrase(f"{off}.")),
            (fewer and not is_reached, True, Phrase(f"{keep}, though not for {name}: {less}")),
            (fewer and price, True, Phrase(f"{keep} unless {price} more: {less}")),
            (fewer, True, Phrase(f"{keep}: {less}", "better")),
            (is_mended and more, True, Phrase(f"{keep} for {name} alone: {worse}")),
            (is_mended, True, Phrase(f"{keep} for {name} alone: {loss}")),
            (more, False, Phrase(f"{drop}: {worse}", "worse")),
            (is_reached, True, Phrase(f"{keep} only if errors on {name} matter most: {gain}")),
            (True, False, Phrase(f"{drop}: {gain}")),
        )
        return next((is_kept, phrase) for fits, is_kept, phrase in cases if fits)

    def _mistakes(self) -> Phrase:
        """How many mistakes of a hotfix are right now: those to learn, and those held out."""
        train = self.change(part="mistakes")
        right = f"{train.images - train.after:,} of {train.images:,}"
        text = f"{right} mistakes to learn are right now"
        if "mistakes_test" in self.counts:
            test = self.change(part="mistakes_test")
            text += f", and {test.images - test.after:,} of {test.images:,} held out"
        return Phrase(f"{text}.", train.judgement)

    def _false_calls(self) -> Phrase:
        """How often images of other classes get a name of those to repair."""
        shares = []
        for outcome in (self.counts["test_base"], self.counts["test"]):
            share = precision(outcome, self.targets)
            shares.append("none" if share is None else f"{share:.0%}")
        calls = self.of_targets.false_calls
        text = f"Other images called {self.target_names} (false calls): "
        if len(self.targets) > 1:
            text = f"Images called {self.target_names} that are of another class (false calls): "
        text += f"{calls.before:,} -> {calls.after:,}; precision {shares[0]} -> {shares[1]}."
        return Phrase(text, calls.judgement)

    # --- what decided, and how far to believe it ------------------------------------------------

    def choice_lines(self) -> list[str]:
        """What was chosen, and why, a line each."""
        lines = []
        for name, choice in self.choices.items():
            key = KEY_OF.get(name, name) if self.results["stage"] == "lora" else name
            lines.append(line_of(key, choice["value"], choice["why"]))
        return lines

    def belief(self) -> list[Phrase]:
        """Whether the test can be believed: where its images come from, and those of the base."""
        results, held_out, lines = self.results, self.results["held_out"], []
        for part, name in {"test": "test", "val": "validation"}.items():
            source = f"the {name} part of the data set {results['dataset']}"
            if part in held_out:
                source = f"held out of the {held_out[part]} part"
            if part in self.counts:
                lines.append(f"{self.change(part=part).images:,} {name} images: {source}.")
        if self.choices.get("refit", {}).get("value"):
            text = "The last training learnt the validation images, too. What is said here of them "
            text += "is of the training before, which had not seen them."
            lines.append(text)
        text = f"{number_of(results['copies'], 'identical file')} in two of training, "
        text += "validation and test, left out of one; similar ones were not searched for."
        lines += [text, *(f"{about['line']}." for about in results["left_out"].values())]
        text = "Each test image was compared by content with all that was learnt: it is none of it."
        if unknown := results["learnt_unknown"]:
            owners = " and the ".join(unknown)
            text = f"What the {owners} learnt elsewhere is not known: test images among it prove "
            text += "nothing."
        lines.append(text)
        val, test = self.counts.get("val_base"), self.counts.get("test_base")
        if val and test and (most := other_mix(val["images_per_class"], test["images_per_class"])):
            number, shares = most
            text = "Validation images have another mix of classes than test images: "
            lines.append(f"{text}{self.classes[number]} is {shares[0]:.1%} and {shares[1]:.1%}.")
        phrases = [Phrase(line) for line in lines]
        if keys := results.get("better_preprocessing"):
            text = (
                f"The base most likely had another preprocessing in its training: {' '.join(keys)}."
            )
            phrases.append(Phrase(f"{text} Test it again with that.", "worse"))
        return phrases

    def made(self) -> list[str]:
        """The command of the run, and what became of the base."""
        results, lines = self.results, []
        if results["overrides"] is not None:
            entry = "eval" if results["stage"] == "eval" else "train"
            lines.append(command_line(entry, results["overrides"]))
        if results.get("base_unchanged"):
            lines.append(f"base unchanged, bit for bit: SHA-256 {results['base_sha256'][:12]}")
        return lines

    # --- the dial -------------------------------------------------------------------------------

    def curves(self) -> dict[str, str]:
        """The dial's counts by name: what a repair is to save, then its price, if it has one."""
        if not self.targets:
            return {"errors on all classes": "errors"}
        return {
            f"errors on {self.target_names}": "errors_of_target",
            f"errors on {self.name_of_others}": "errors_elsewhere",
            f"false calls of {self.target_names}": "false_calls_of_target",
        }

    def _at(self, place: int) -> str:
        """What a scale of the dial does to validation images, at its best offset."""
        dial = self.dial
        texts = []
        for name, key in self.curves().items():
            texts.append(f"{name} {dial['base'][key]:,} -> {dial[key][place]:,}")
        offset = f"with the offset {dial['offsets'][place]:g} " if dial["offsets"][place] else ""
        return f"{offset}has {', '.join(texts)}"

    def advice(self) -> str:
        """The scale that validation images advise, and their errors there beside the base's."""
        advised = self.dial["advised"]
        at_advised = self._at(self.dial["scales"].index(advised))
        return f"Validation images advise scale {advised:g}, which {at_advised}."

    # --- the next step ----------------------------------------------------------------------------

    def next_step(self, folder: Path) -> str | None:
        """After the test of a base in ``folder``: the command that repairs its weakest class.

        It is weakest on validation images, which the command itself finds.
        """
        results, total = self.results, self.total
        # A run that was called from Python has no command line that says what it ran on.
        is_known = results.get("overrides") is not None and not results.get("better_preprocessing")
        training = results["training_images_per_class"]
        has_errors = "val" not in self.counts or self.counts["val"]["errors"] > 0
        has_images = sum(training) > max(training) and results["validation_images"] and has_errors
        # Mending so few errors could be chance; a base that gets half wrong needs training.
        worst = self.change([self.weakest_class()])
        is_worth_it = mcnemar(worst.after, 0) <= LEVEL and 2 * total.after < total.images
        if self.is_repair or not (is_known and has_images and is_worth_it):
            return None
        overrides = ["experiment=repair", "target=weakest"]
        if weights := results.get("weights"):  # the file of a base that is not the current one
            overrides.append(f"base_ckpt={in_grammar(relpath(folder / weights))}")
        given = [key_of(text) for text in overrides]
        for text in results["overrides"]:
            if key_of(text).startswith(_REPEATED) and key_of(text) not in given:
                overrides.append(text)
        return command_line("train", overrides)


def number_of(count: int, word: str) -> str:
    """``1 error``, ``2,000 errors``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
