"""The next steps after a run: whole commands, each with its reason.

A command repeats the run's overrides of images, network and base.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.classifier.significance import LEVEL, mcnemar
from lora_mnist.disk.record import TRAINING_KEYS
from lora_mnist.project import command_line, key_of, override, program
from lora_mnist.show.changes import (
    are_digits,
    change_of,
    is_guessing,
    named,
    number_of,
    others_of,
    rest_of,
    start_of,
    weakest_of,
)

#: Groups of overrides that a command repeats, but for keys of ``data`` that only this
#: training needs.
_REPEATED = ("data", "net", "base_name", "base_ckpt", "paths", "allow_other_base", "trust")


class Phrase(NamedTuple):
    """A sentence, and the outcome that it tells: ``better``, ``worse`` or ``unclear``."""

    text: str
    outcome: str = "unclear"
    is_command: bool = False


def next_steps(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """Reasons, each followed by its command, from what the run in ``folder`` has left there.

    There are none for a run that was called from Python: no command line says what it ran on.
    """
    stage, dial = results["stage"], results.get("dial") or {}
    everything, targets = change_of(results), results["targets"]
    # The base is too bad, or has no errors, or other preprocessing was advised first.
    is_base_bad = 2 * everything.before >= everything.images
    if is_base_bad or not everything.after or results.get("better_preprocessing"):
        return []
    if results.get("overrides") is None:
        return []
    split = "val" if "val" in results else "test"  # validation images decide, if there are any
    if "test_base" not in results:
        worst = weakest_of(results, range(len(results["classes"])), split)
        if not _can_be_shown(results, worst, split):
            return []
        kind = "validation" if split == "val" else "test"
        reason = f"To repair {named(results['classes'], [worst])}, weakest on {kind} images:"
        weights = results.get("weights")  # of a base that is not the current one
        more = [override("base_ckpt", _typed_path(folder / weights))] if weights else []
        return _repair_steps(reason, results, [worst], *more)
    if stage != "lora" or not results["adapter"]:  # a trial keeps none
        return []
    phrases = []
    # Without replay no scale is advised: the few errors that it saves may be chance.
    if dial and everything.outcome != "better" and (results["replay"] or not targets):
        phrases += _dial_steps(results, folder)
    if dial.get("saved") == 0:
        return phrases
    if not targets:
        return phrases
    rest, others = rest_of(results), others_of(results["classes"])
    target, elsewhere = change_of(results, targets), change_of(results, rest)
    overrides = results["overrides"]
    is_on_top = any(key_of(text) == "adapter" for text in overrides)
    if not results["replay"]:
        if everything.outcome != "better":
            reason = f"To train with replayed images of {others} as well:"
            phrases += _repair_steps(reason, results, targets)
    elif is_guessing(results):  # other weights are no remedy: the training itself has failed
        return phrases
    elif everything.outcome == "unclear" or (
        target.outcome == "better" and elsewhere.outcome == "worse"
    ):
        left_out = ("loss.target_weight", "dial")
        repeated = [text for text in overrides if key_of(text) not in left_out]
        if repeated and not is_on_top:
            price = _duration(results["seconds"]["total"])
            text = "To compare several values of loss.target_weight, in repairs of some "
            phrases += [Phrase(f"{text}{price} each:")]
            text = command_line(["-m", *repeated, "sweep=front"], program("train"))
            phrases += [Phrase(text, is_command=True)]
    elif {target.outcome, everything.outcome} == {"better"} and not is_on_top and rest:
        # A second repair helped wherever it was tried; a third one took back some of the first two.
        worst = weakest_of(results, rest, split)
        weakest, mended = (change_of(results, numbers, split) for numbers in ([worst], targets))
        if weakest.after > mended.after and _can_be_shown(results, worst, split):
            name = named(results["classes"], [worst])
            images = f"{weakest.images:,} {'validation' if split == 'val' else 'test'} images"
            errors = f"{number_of(weakest.after, 'error')} in {images}"
            reason = f"The weakest class is now {name} ({errors}). To go on with {name}:"
            phrases += _repair_steps(reason, results, [worst], _adapter_in(folder))
    return phrases


def _can_be_shown(results: Mapping[str, Any], number: int, split: str) -> bool:
    """Whether a class has enough errors for a repair of them all to be more than chance."""
    return mcnemar(results[split]["errors_per_class"][number], 0) <= LEVEL


def _repair_steps(
    reason: str, results: Mapping[str, Any], numbers: Sequence[int], *more: str
) -> list[Phrase]:
    """``reason``, and the command that repairs some classes, as it names them."""
    names = [results["classes"][number] for number in numbers]
    key = "digit" if are_digits(names) else "target"
    values = ",".join(override(key, name).partition("=")[2] for name in names)
    target = f"{key}={values}" if len(names) == 1 else f"{key}=[{values}]"
    text = command("train", results, "experiment=repair", target, *more)
    return [Phrase(reason), Phrase(text, is_command=True)]


def _duration(seconds: float) -> str:
    """``50 s``, ``11 min``."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


def _dial_steps(results: Mapping[str, Any], folder: Path) -> list[Phrase]:
    """The scale that validation images advise, where it is not the adapter's own."""
    dial = results["dial"]
    if dial["advised"] == dial["saved"]:
        return []
    if dial["advised"] == 0:
        return [Phrase(f"No scale beats the {start_of(results)} on validation images.")]
    text = scaled_command(results, folder)
    if not text:
        return []
    scale = f"{dial['advised'] / dial['saved']:g}"
    errors = f"validation errors, base -> adapted: {dial_text(results)}"
    reason = Phrase(f"Scale {scale} is advised ({errors}):")
    return [reason, Phrase(text, is_command=True)]


def dial_text(results: Mapping[str, Any]) -> str:
    """``nines 28 -> 11, the other digits 152 -> 160``: validation errors at the advised scale."""
    dial, classes, targets = results["dial"], results["classes"], results["targets"]
    curves = {"all classes": dial["errors"]}
    if targets:
        curves = {named(classes, targets): dial["errors_of_target"]}
        curves[others_of(classes)] = dial["errors_elsewhere"]
    base, advised = dial["scales"].index(0), dial["scales"].index(dial["advised"])
    texts = []
    for name, errors in curves.items():
        texts.append(f"{name} {errors[base]:,} -> {errors[advised]:,}")
    return ", ".join(texts)


def scaled_command(results: Mapping[str, Any], folder: Path) -> str:
    """The command that tests the adapter of the run in ``folder`` at the advised scale.

    Empty on top of an earlier adapter: the file holds the sum of both, and one scale turns both.
    """
    dial, overrides = results["dial"], [_adapter_in(folder)]
    if dial["saved"] != dial["advised"]:
        if "test_before" in results:
            return ""
        overrides.append(f"scale={dial['advised'] / dial['saved']:g}")
    return command("eval", results, *overrides)


def command(entry: str, results: Mapping[str, Any], *overrides: str) -> str:
    """A whole command on the images, the network and the base of a run."""
    repeated, given = [], [key_of(text) for text in overrides]
    for text in results["overrides"]:
        group, _, key = key_of(text).partition(".")
        is_training_key = group == "data" and key in TRAINING_KEYS
        if group in _REPEATED and not is_training_key and key_of(text) not in given:
            repeated.append(text)
    return command_line([*overrides, *repeated], program(entry))


def _adapter_in(folder: Path) -> str:
    """``adapter=FOLDER`` of the run in ``folder``."""
    return override("adapter", _typed_path(folder))


def _typed_path(path: Path) -> Path:
    """``path`` as somebody types it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
