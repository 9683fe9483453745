"""Answers questions about a run from results.json: classes, changes of counts, table rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.lora.point import Point
from lora_mnist.measure.significance import LEVEL, find_weakest, mcnemar, wilson
from lora_mnist.project import format_command

_DIGITS = {"0": "zeros", "1": "ones", "2": "twos", "3": "threes", "4": "fours"}
_DIGITS |= {"5": "fives", "6": "sixes", "7": "sevens", "8": "eights", "9": "nines"}
#: More names than these would fill the line.
_MAX_NAMES = 4
#: A longer table would push the verdict off the screen; results.json has every class.
_MAX_ROWS = 12
#: A smaller p-value is printed as less than this.
_LEAST_P = 0.001


class Sentence(NamedTuple):
    """A sentence about a run, and its judgement by :func:`judge_p_value`, or ``""``."""

    text: str
    judgement: str = ""


def judge_p_value(p_value: float, is_better: bool) -> str:
    """Return ``better``, ``worse`` or, where the difference may be chance, ``unclear``."""
    if p_value > LEVEL:
        return "unclear"
    return "better" if is_better else "worse"


class Change(NamedTuple):
    """The outcomes for images of some classes, and the false positives of these classes."""

    before: int  # errors
    after: int
    repaired: int
    broken: int
    images: int
    false_positives: tuple[int, int]  # before and after

    @property
    def p_value(self) -> float:
        return mcnemar(self.repaired, self.broken)

    @property
    def judgement(self) -> str:
        return judge_p_value(self.p_value, self.repaired > self.broken)

    @property
    def judgement_of_false_positives(self) -> str:
        """The judgement, conservatively as if no image were in both counts."""
        before, after = self.false_positives
        return judge_p_value(mcnemar(before, after), before > after)


class Row(NamedTuple):
    """A line of the table of classes: a class, several, or all, and its cells by title."""

    name: str
    classes: Sequence[int]
    change: Change
    cells: dict[str, Any]
    is_target: bool


class RunResults:
    """The answers that results.json has about the test of a base, or about a repair of one."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._results = results
        self.classes: list[str] = results["classes"]
        self.targets: list[int] = results["targets"]
        self.every = list(range(len(self.classes)))
        self.other_classes = [c for c in self.every if c not in self.targets]
        self.stage: str = results["stage"]
        #: The overrides of the command line; ``None``: the run was called from Python.
        self.overrides: list[str] | None = results["overrides"]
        self.steps: int = results["steps"]
        self.dataset: str = results["dataset"]
        self.val_from: str = results["val_from"]
        self.held_out: Mapping[str, str] = results["held_out"]
        self.duplicates: int = results["duplicates"]
        self.excluded: Mapping[str, Mapping[str, str]] = results["excluded"]
        #: Base or adapter, if its training images are not known.
        self.unknown_train_digests: list[str] = results["unknown_train_digests"]
        self.training_images: list[int] = results["training_images_per_class"]
        self.num_validation_images: int = results["validation_images"]
        self.better_preprocessing: list[str] = results.get("better_preprocessing") or []
        #: Pairs of a step and the validation errors after it.
        self.validation_errors: list[list[int]] = results.get("validation_errors") or [[0, 0]]
        self.max_steps: int | None = results.get("max_steps")
        #: The file of a new base that is not the current one, in the run's folder.
        self.weights: str | None = results.get("weights")
        self.base_unchanged: bool | None = results.get("base_unchanged")
        self.base_sha256: str = results["base_sha256"]
        #: The folder of a new adapter, in the run's; None: none was saved.
        self.adapter = results.get("adapter") if self.stage == "lora" else None
        #: Where the adapter stands; ``None`` for a base.
        self.point = None if results["point"] is None else Point(**results["point"])
        self.is_repair = self.point is not None
        #: The counts of each split, as :func:`.predictions.count_by_split` names them.
        self.counts: dict[str, Mapping[str, Any]] = {}
        for split in ("val", "test", "mistakes", "mistakes_test"):
            for name in (split, f"{split}_base"):
                if name in results:
                    self.counts[name] = results[name]
        self.is_hotfix = "mistakes" in self.counts
        self.choices: Mapping[str, Mapping[str, Any]] = results["choices"]
        #: The measure that decides and judges: one of :data:`.class_weights.MEASURES`.
        self.choose_by: str = results["choose_by"]
        #: The curve's row of the last layer alone; empty if it was not trained beside others.
        self.head: Mapping[str, Any] = results.get("head") or {}
        self.is_head = self.choices.get("trial", {}).get("value") == "head"
        #: The result of :func:`.scale_curve.scale_curve` on validation images; empty without one.
        self.scale_curve: Mapping[str, Any] = results.get("scale_curve") or {}
        self.target_names = self.name_classes(self.targets) if self.targets else ""
        self.total_change = self.change()
        self.target_change = self.change(self.targets)

    def with_names(self, classes: Sequence[str]) -> "RunResults":
        """Return the same for classes with other names."""
        return RunResults({**self._results, "classes": classes})

    @property
    def command(self) -> str | None:
        """The run's command; ``None``: it was called from Python."""
        if self.overrides is None:
            return None
        return format_command("eval" if self.stage == "eval" else "train", self.overrides)

    @property
    def advised(self) -> Point:
        """The operating point that validation images advise; it needs a curve."""
        return Point(**self.scale_curve["advised"])

    @property
    def has_offset(self) -> bool:
        """True if validation images advise an offset at any scale; it needs a curve."""
        return any(row["offset"] for row in self.scale_curve["rows"])

    def change(self, classes: Sequence[int] | None = None, split: str = "test") -> Change:
        """Return the change in images of some classes, or all; a base is compared with itself."""
        after = self.counts[split]
        before = self.counts.get(f"{split}_base", after)
        numbers = self.every if classes is None else classes

        def total(counts: Mapping[str, Any], key: str) -> int:
            per_class = counts.get(f"{key}_per_class") or [0] * len(self.classes)
            return sum(per_class[c] for c in numbers)

        def false_positives(counts: Mapping[str, Any]) -> int:
            if (
                len(numbers) > 1 and numbers == self.targets
            ):  # not the sum: it omits confusions between targets
                return int(counts.get("false_positives_of_target", 0))
            return total(counts, "false_positives")

        return Change(
            before=total(before, "errors"),
            after=total(after, "errors"),
            repaired=total(after, "repaired"),
            broken=total(after, "broken"),
            images=total(after, "images"),
            false_positives=(false_positives(before), false_positives(after)),
        )

    def compare_measure(self, measure: str) -> tuple[float, float, float]:
        """Return a measure of :data:`.class_weights.MEASURES` before and after, and p."""
        before, after = self.counts["test_base"], self.counts["test"]
        return before[measure], after[measure], after[f"p_value_{measure}"]

    def judge(self, measure: str) -> str:
        """Judge the change of a measure on test images."""
        before, after, p_value = self.compare_measure(measure)
        return judge_p_value(p_value, after > before)

    @property
    def deciding_split(self) -> str:
        """The split by which a repair would choose classes: ``val`` if it has images."""
        return "val" if "val" in self.counts else "test"

    def weakest_class(self) -> int:
        """Return the number of the class that a repair would choose as the weakest."""
        counts = self.counts[self.deciding_split]
        return find_weakest(counts["errors_per_class"], counts["images_per_class"])

    def name_classes(self, numbers: Sequence[int]) -> str:
        """Name classes in a sentence: ``fours and nines``, ``cat and dog``, ``12 classes``."""
        names = [self.classes[number] for number in numbers]
        if len(names) > _MAX_NAMES:
            return f"{len(names)} classes"
        if self._has_digits:
            names = [_DIGITS[name] for name in names]
        *first, last = names
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def other_classes_name(self) -> str:
        """The words for all classes but those to repair."""
        return "the other digits" if self._has_digits else "the other classes"

    @property
    def _has_digits(self) -> bool:
        """True if the classes are the ten digits: 0 and 1 alone are names of a user's own."""
        return set(self.classes) == _DIGITS.keys()

    def build_rows(self) -> list[Row]:
        """Return a row for each class, or for the most changed of many, and one for all."""
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
            cells["false positives"] = ""
            if len(group) == 1:  # of several, some are mistaken for each other
                cells["false positives"] = self._pair(*change.false_positives)
            low, high = wilson(change.after, change.images)
            cells |= {"images": change.images, "95% interval": f"{low:.0f}-{high:.0f}"}
            is_target = self.is_repair and len(group) == 1 and group[0] in self.targets
            rows.append(Row(name, group, change, cells, is_target))
        return rows

    def format_accuracies(self) -> str:
        """Return the accuracies on test images: ``0.9432 -> 0.9788``, or of a base ``0.9432``."""
        after = self.counts["test"]
        before = self.counts.get("test_base", after)
        names = {"accuracy": "accuracy", "balanced_accuracy": "balanced"}
        parts = []
        for measure, name in (names | {"mean_accuracy": "the mean of both"}).items():
            pair = self._pair(f"{before[measure]:.4f}", f"{after[measure]:.4f}")
            parts.append(f"{name}: {pair}")
        return "; ".join(parts)

    def _pair(self, before: object, after: object) -> str:
        """Return a number before and after a repair, or of a base alone."""
        return f"{before} -> {after}" if self.is_repair else str(after)

    def name_curves(self) -> dict[str, str]:
        """Return the curve's counts by name: of the target, then of the cost, if there is one."""
        if not self.targets:
            return {"errors on all classes": "errors"}
        return {
            f"errors on {self.target_names}": "errors_of_target",
            f"errors on {self.other_classes_name}": "errors_elsewhere",
            f"false positives of {self.target_names}": "false_positives_of_target",
        }


def format_count(count: int, word: str) -> str:
    """Return a count with its noun: ``1 error``, ``2,000 errors``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def format_measure(choose_by: str) -> str:
    """Return a measure's name for a sentence: ``balanced accuracy``."""
    return choose_by.replace("_", " ")


def format_p_value(p_value: float) -> str:
    """Return ``may be chance, p = 0.65`` or ``p < 0.001``; never rounded past ``LEVEL``."""
    if p_value < _LEAST_P:
        return f"p < {_LEAST_P}"
    digits = 2
    while (float(f"{p_value:.{digits}g}") <= LEVEL) != (p_value <= LEVEL):
        digits += 1
    chance = "may be chance, " if p_value > LEVEL else ""
    return f"{chance}p = {p_value:.{digits}g}"
