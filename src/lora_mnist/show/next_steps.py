"""The next steps after a run: whole commands, each with its reason.

There are three: to repair the weakest class of a base; to repair one class more; to test an adapter
at the scale that validation images advise.
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
    if "test_base" not in results:
        return _first_repair(results, folder)
    if results["stage"] == "lora" and results["adapter"]:  # a trial keeps none
        return [*_other_scale(results, folder), *_class_more(results)]
    return []


def _first_repair(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """Repair the weakest class of a base that gets more than half of the images right."""
    test, split = results["test"], _deciding_split(results)
    worst = weakest_of(results, range(len(results["classes"])), split)
    is_too_bad = 2 * test["errors"] >= sum(test["images_per_class"])
    if is_too_bad or not _can_be_shown(results, worst, split):
        return []
    kind = "validation" if split == "val" else "test"
    reason = f"To repair {named(results['classes'], [worst])}, weakest on {kind} images:"
    overrides = ["experiment=repair", _target_override(results, [worst])]
    if results.get("weights"):  # the file of a base that is not the current one
        overrides.append(override("base_ckpt", _typed_path(folder / results["weights"])))
    return [Phrase(reason), Phrase(command("train", results, *overrides), is_command=True)]


def _class_more(results: Mapping[str, Any]) -> list[Phrase]:
    """After a repair that helped: the same command with the weakest other class as well."""
    targets, rest = results["targets"], rest_of(results)
    if not targets or not rest:
        return []
    if change_of(results).outcome != "better" or change_of(results, targets).outcome != "better":
        return []
    split = _deciding_split(results)
    worst = weakest_of(results, rest, split)
    if not _can_be_shown(results, worst, split):
        return []
    errors = number_of(results[split]["errors_per_class"][worst], "error")
    kind = "validation" if split == "val" else "test"
    images = f"{results[split]['images_per_class'][worst]:,} {kind} images"
    reason = f"The weakest of {others_of(results['classes'])}: "
    reason += f"{named(results['classes'], [worst])} ({errors} in {images}). To repair it as well:"
    target = _target_override(results, [*targets, worst])
    overrides = []
    for text in results["overrides"]:
        overrides.append(target if key_of(text) in ("digit", "target") else text)
    if target not in overrides:  # a file of the user's names the class
        overrides.append(target)
    return [Phrase(reason), Phrase(command_line(overrides, program("train")), is_command=True)]


def _deciding_split(results: Mapping[str, Any]) -> str:
    """``val``, the validation images, if there are any; else ``test``."""
    return "val" if "val" in results else "test"


def _can_be_shown(results: Mapping[str, Any], number: int, split: str) -> bool:
    """Whether a class has enough errors for a repair of them all to be more than chance."""
    return mcnemar(results[split]["errors_per_class"][number], 0) <= LEVEL


def _target_override(results: Mapping[str, Any], numbers: Sequence[int]) -> str:
    """``digit=9``, ``target=[cat,dog]``."""
    names = [results["classes"][number] for number in numbers]
    key = "digit" if are_digits(names) else "target"
    values = ",".join(override(key, name).partition("=")[2] for name in names)
    return f"{key}={values}" if len(names) == 1 else f"{key}=[{values}]"


def _other_scale(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """The scale that validation images advise, where the adapter is saved at another one."""
    dial = results.get("dial")
    if not dial or dial["advised"] == dial["saved"]:
        return []
    if dial["advised"] == 0:
        return [Phrase("No scale of the adapter beats the base on validation images.")]
    scale = f"{dial['advised'] / dial['saved']:g}"
    reason = f"Validation images advise scale {scale} ({dial_text(results)}):"
    return [Phrase(reason), Phrase(scaled_command(results, folder), is_command=True)]


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
        overrides.append(f"scale={dial['advised'] / dial['saved']:g}")
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
