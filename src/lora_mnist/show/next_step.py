"""The command to go on with after the test of a base."""

from os.path import relpath
from pathlib import Path
from typing import NamedTuple

from lora_mnist.config.run import in_grammar, key_of
from lora_mnist.measure.significance import LEVEL, mcnemar
from lora_mnist.project import command_line
from lora_mnist.show.reading import Reading

#: How overrides begin that say which images, network and base: the next command repeats them.
_REPEATED = ("--config-dir", "classifier", "data", "prepare", "net", "paths", "base_")


class Step(NamedTuple):
    """An advice for the next step: a sentence, and its command, or "" where there is none."""

    text: str
    command: str = ""


def next_step(reading: Reading, folder: Path) -> Step | None:
    """After the test of a base in ``folder``: how to repair its weakest class, or why not yet."""
    if reading.is_repair:
        return _export(reading, folder)
    total, training = reading.total, reading.training_images
    # A run that was called from Python has no command line that says what it ran on.
    is_known = reading.overrides is not None and not reading.better_preprocessing
    # Mending so few errors could be chance.
    worst = reading.change([reading.weakest_class()], reading.deciding_part)
    is_worth_it = sum(training) > max(training) and mcnemar(worst.after, 0) <= LEVEL
    if not (is_known and is_worth_it):
        return None
    if 2 * total.after >= total.images:
        return Step("Half of the test images are wrong: to repair one class does not mend that.")
    if not reading.validation_images:
        keys = "data.val_size > 0, or data.val_from=test"
        return Step(
            f"A repair needs validation images, and there are none: {keys}, holds some out."
        )
    weakest = reading.classes[reading.weakest_class()] if "val" in reading.counts else "weakest"
    overrides = ["experiment=repair", f"target={in_grammar(weakest)}"]
    if reading.weights:  # the file of a base that is not the current one
        overrides.append(f"base_ckpt={in_grammar(relpath(folder / reading.weights))}")
    text = "To repair the class that is weakest on validation images (with target=weak: all weak "
    return Step(f"{text}ones):", command_line("train", _with_repeated(overrides, reading)))


def _export(reading: Reading, folder: Path) -> Step | None:
    """Return how to export a repair that is kept, after its training in ``folder``."""
    is_kept = reading.judgement_of(reading.choose_by) == "better"
    if not is_kept or reading.adapter is None or reading.overrides is None:
        return None
    adapter = in_grammar(relpath(folder / reading.adapter))
    overrides = _with_repeated([f"adapter={adapter}", "out=repaired.onnx"], reading)
    return Step("To export base and adapter as one network:", command_line("export", overrides))


def _with_repeated(overrides: list[str], reading: Reading) -> list[str]:
    """Return overrides with those of the run that say which images, network and base."""
    given, repeated = [key_of(text) for text in overrides], list[str]()
    for text in reading.overrides or ():
        if key_of(text).startswith(_REPEATED) and key_of(text) not in given:
            repeated.append(text)
    return [*overrides, *repeated]
