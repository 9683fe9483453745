"""Suggests the next command after the test of a base or a repair."""

from os.path import relpath
from pathlib import Path
from typing import NamedTuple

from lora_mnist.config.run import override_key, quote_for_hydra
from lora_mnist.measure.significance import LEVEL, mcnemar
from lora_mnist.project import format_command
from lora_mnist.show.run_results import RunResults

#: Prefixes of overrides that select images, network and base: the next command repeats them.
_REPEATED = ("--config-dir", "classifier", "data", "prepare", "net", "paths", "base_")


class Step(NamedTuple):
    """A suggested next step: a sentence, and its command, or ""."""

    text: str
    command: str = ""


def suggest_next_step(results: RunResults, folder: Path) -> Step | None:
    """Return the next command for a base or a repair, or why there is none yet, or None."""
    if results.is_repair:
        return _suggest_export(results, folder)
    total, training = results.total_change, results.training_images
    # A run that was called from Python has no command line that says what it ran on.
    is_known = results.overrides is not None and not results.better_preprocessing
    # Repairing so few errors could be chance.
    worst = results.change([results.weakest_class()], results.deciding_split)
    is_worth_it = sum(training) > max(training) and mcnemar(worst.after, 0) <= LEVEL
    if not (is_known and is_worth_it):
        return None
    if 2 * total.after >= total.images:
        return Step("Half of the test images are wrong; repairing one class does not fix that.")
    if not results.num_validation_images:
        keys = "data.val_size > 0, or data.val_from=test"
        return Step(f"A repair needs validation images, and there are none: set {keys}.")
    weakest = results.classes[results.weakest_class()] if "val" in results.counts else "weakest"
    overrides = ["experiment=repair", f"target={quote_for_hydra(weakest)}"]
    if results.weights:  # the file of a base that is not the current one
        overrides.append(f"base_ckpt={quote_for_hydra(relpath(folder / results.weights))}")
    text = "To repair the weakest class on validation images (target=weak: all weak classes):"
    return Step(text, format_command("train", _with_repeated(overrides, results)))


def _suggest_export(results: RunResults, folder: Path) -> Step | None:
    """Return how to export a repair that is kept, after its training in ``folder``."""
    is_kept = results.judge(results.choose_by) == "better"
    if not is_kept or results.adapter is None or results.overrides is None:
        return None
    adapter = quote_for_hydra(relpath(folder / results.adapter))
    overrides = _with_repeated([f"adapter={adapter}", "out=repaired.onnx"], results)
    return Step("To export base and adapter as one network:", format_command("export", overrides))


def _with_repeated(overrides: list[str], results: RunResults) -> list[str]:
    """Return overrides, followed by the run's own for images, network and base."""
    given, repeated = [override_key(text) for text in overrides], list[str]()
    for text in results.overrides or ():
        if override_key(text).startswith(_REPEATED) and override_key(text) not in given:
            repeated.append(text)
    return [*overrides, *repeated]
