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
    """What to do next: a sentence, and the command that does it; "" where there is none."""

    text: str
    command: str = ""


def next_step(reading: Reading, folder: Path) -> Step | None:
    """After the test of a base in ``folder``: how to repair its weakest class, or why not yet."""
    total, training = reading.total, reading.training_images
    # A run that was called from Python has no command line that says what it ran on.
    is_known = reading.overrides is not None and not reading.better_preprocessing
    # Mending so few errors could be chance.
    worst = reading.change([reading.weakest_class()])
    is_worth_it = sum(training) > max(training) and mcnemar(worst.after, 0) <= LEVEL
    if reading.is_repair or not (is_known and is_worth_it):
        return None
    if 2 * total.after >= total.images:
        return Step("Half of the test images are wrong: to repair one class does not mend that.")
    if not reading.validation_images:
        keys = "data.val_size > 0, or data.val_from=test"
        return Step(
            f"A repair needs validation images, and there are none: {keys}, holds some out."
        )
    if "val" in reading.counts and not reading.counts["val"]["errors"]:
        return None
    overrides = ["experiment=repair", "target=weakest"]  # on validation images
    if reading.weights:  # the file of a base that is not the current one
        overrides.append(f"base_ckpt={in_grammar(relpath(folder / reading.weights))}")
    given = [key_of(text) for text in overrides]
    for text in reading.overrides or ():
        if key_of(text).startswith(_REPEATED) and key_of(text) not in given:
            overrides.append(text)
    text = "To repair the class that is weakest on validation images (with target=weak: all weak "
    return Step(f"{text}ones):", command_line("train", overrides))
