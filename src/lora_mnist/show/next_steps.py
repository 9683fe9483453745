"""The next steps after a run: whole commands, each with its reason.

There are four: to repair the weakest class of a base; to repair one class more; to test an adapter
at the scale that validation images advise; and after a repair that failed another class, or several
weights of the same one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.disk.record import TRAINING_KEYS
from lora_mnist.project import command_line, program
from lora_mnist.repair.significance import LEVEL, mcnemar
from lora_mnist.run import key_of, override
from lora_mnist.show.changes import (
    are_digits,
    change_of,
    named,
    number_of,
    others_of,
    rest_of,
    weakest_of,
)

#: The images, the network and the base of a run: groups of overrides that other commands repeat.
_REPEATED = (
    *("--config-dir", "classifier"),
    *("data", "net", "paths", "trust", "allow_other_base"),
    *("base_name", "base_ckpt", "base_prefix"),
)


#: Images of other classes beside each batch of experiment=repair.
_REPLAY = 90


class Phrase(NamedTuple):
    """A sentence, and the outcome that it tells: ``better``, ``worse`` or ``unclear``."""

    text: str
    outcome: str = "unclear"
    is_command: bool = False


def next_steps(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """Reasons, each followed by its command, from what the run in ``folder`` has left there.

    There are none for a run that was called from Python, since no command line says what it ran on,
    nor where another preprocessing was advised first.
    """
    if results.get("overrides") is None or results.get("better_preprocessing"):
        return []
    steps = []
    if "test_base" in results:
        if results["stage"] != "lora" or not results["adapter"]:  # a trial keeps none
            return []
        dial = results.get("dial")
        if dial and dial["advised"] == 0 != dial["saved"]:
            steps.append(Phrase("No scale of the adapter beats the base on validation images."))
        elif dial and dial["advised"] != dial["saved"]:
            reason = f"Validation images advise scale {dial['advised']:g} ({dial_text(results)}):"
            steps += [Phrase(reason), Phrase(scaled_command(results, folder), is_command=True)]
    return steps + _weakest_class(results, folder) + _after_failure(results)


def _after_failure(results: Mapping[str, Any]) -> list[Phrase]:
    """After a repair of a class that is not the weakest one: that one. Else several weights."""
    targets, classes = results["targets"], results["classes"]
    is_failure = "test_base" in results and change_of(results).outcome != "better"
    if not (is_failure and targets and "val_base" in results):
        return []
    worst = weakest_of(results, range(len(classes)), "val_base")
    kept = [text for text in results["overrides"] if key_of(text) not in ("digit", "target")]
    if worst not in targets:
        errors = results["val_base"]["errors_per_class"][worst]
        # A repair of them all might be chance, and replay needs images.
        if mcnemar(errors, 0) > LEVEL or results["replay"] > _others(results, [worst]):
            return []
        reason = f"The weakest class is another one, {named(classes, [worst])}. To repair it:"
        line = command_line([*kept, _target(classes, [worst])], program("train"))
    elif "experiment=repair" in kept:
        reason = "To see what other weights of the class would cost, on validation images:"
        kept = [text for text in kept if key_of(text) not in ("loss.target_weight", "dial")]
        target = _target(classes, targets)
        line = command_line(["-m", *kept, target, "sweep=front"], program("train"))
    else:
        return []
    return [Phrase(reason), Phrase(line, is_command=True)]


def _others(results: Mapping[str, Any], numbers: Sequence[int]) -> int:
    """The number of training images of other classes than these."""
    counts = results["training_images_per_class"]
    return int(sum(counts) - sum(counts[number] for number in numbers))


def _target(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """``digit=9``, ``target=[cat,dog]``."""
    names = [classes[number] for number in numbers]
    key = "digit" if are_digits(names) else "target"
    values = ",".join(override(key, name).partition("=")[2] for name in names)
    return f"{key}={values}" if len(names) == 1 else f"{key}=[{values}]"


def _weakest_class(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """Repair the weakest class of a base, or after a repair that helped the next one as well."""
    classes, targets, is_base = results["classes"], results["targets"], "test_base" not in results
    if is_base:
        targets, rest = [], list(range(len(classes)))
        is_worth_it = 2 * results["test"]["errors"] < sum(results["test"]["images_per_class"])
    else:
        rest = rest_of(results)
        outcomes = {change_of(results).outcome, change_of(results, targets).outcome}
        is_worth_it = bool(targets and rest) and outcomes == {"better"}
    if not is_worth_it:
        return []
    split, kind = ("val", "validation") if "val" in results else ("test", "test")
    worst = weakest_of(results, rest, split)
    errors = results[split]["errors_per_class"][worst]
    if mcnemar(errors, 0) > LEVEL:  # a repair of them all might be chance
        return []
    others = _others(results, [*targets, worst])
    if is_base:
        learnt = results["training_images_per_class"][worst]
        has_images = learnt and others and results["validation_images"]
    else:
        has_images = results["replay"] <= others
    if not has_images:
        return []
    images = f"{results[split]['images_per_class'][worst]:,} {kind} images"
    name = named(classes, [worst])
    reason = f"The weakest {'class' if is_base else f'of {others_of(classes)}'}: "
    reason += f"{name} ({number_of(errors, 'error')} in {images}). "
    reason += "To repair it:" if is_base else "To repair it as well:"
    if is_base and split == "test":  # the verdict says so already
        reason = f"To repair {name}:"
    target = _target(classes, [*targets, worst])
    if is_base:
        overrides = ["experiment=repair", target]
        if others < _REPLAY:
            overrides.append(f"data.replay={others}")
        if results.get("weights"):  # the file of a base that is not the current one
            overrides.append(override("base_ckpt", _typed_path(folder / results["weights"])))
        line = command("train", results, *overrides)
    else:
        kept = [text for text in results["overrides"] if key_of(text) not in ("digit", "target")]
        line = command_line([*kept, target], program("train"))
    return [Phrase(reason), Phrase(line, is_command=True)]


def choice_text(trials: Sequence[Mapping[str, Any]], dropout: float) -> str:
    """Which dropout was chosen, by the validation errors of which trials."""
    errors = {trial["dropout"]: trial["val_errors"] for trial in trials}
    name = f"dropout {dropout:g}" if dropout else "no dropout"
    text = f"{name} was chosen on validation images ({number_of(errors.pop(dropout), 'error')}"
    for other, count in errors.items():
        text += f", with dropout {other:g} {count:,}" if other else f", without it {count:,}"
    return f"{text})"


def dial_text(results: Mapping[str, Any]) -> str:
    """Validation errors, before and after, at the advised scale.

    ``nines 28 errors -> 11, the other digits 152 errors -> 160``.
    """
    dial, classes, targets = results["dial"], results["classes"], results["targets"]
    curves = {"all classes": dial["errors"]}
    if targets:
        curves = {named(classes, targets): dial["errors_of_target"]}
        curves[others_of(classes)] = dial["errors_elsewhere"]
    base, advised = dial["scales"].index(0), dial["scales"].index(dial["advised"])
    texts = []
    for name, errors in curves.items():
        texts.append(f"{name} {number_of(errors[base], 'error')} -> {errors[advised]:,}")
    return ", ".join(texts)


def scaled_command(results: Mapping[str, Any], folder: Path) -> str:
    """The command that tests the adapter of the run in ``folder`` at the advised scale."""
    dial, overrides = results["dial"], [override("adapter", _typed_path(folder))]
    if dial["saved"] != dial["advised"]:
        overrides.append(f"scale={dial['advised']:g}")
    return command("eval", results, *overrides)


def command(entry: str, results: Mapping[str, Any], *overrides: str) -> str:
    """A whole command on the images, the network and the base of a run.

    It leaves out keys of ``data`` that only this training needed.
    """
    repeated, given = [], [key_of(text) for text in overrides]
    for text in results["overrides"]:
        group, _, key = key_of(text).partition(".")
        is_training_key = group == "data" and key in TRAINING_KEYS
        if group in _REPEATED and not is_training_key and key_of(text) not in given:
            repeated.append(text)
    return command_line([*overrides, *repeated], program(entry))


def _typed_path(path: Path) -> Path:
    """``path`` as somebody types it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
