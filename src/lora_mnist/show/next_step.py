"""The command to go on with after the test of a base."""

from os.path import relpath
from pathlib import Path

from lora_mnist.config.run import in_grammar, key_of
from lora_mnist.measure.significance import LEVEL, mcnemar
from lora_mnist.project import command_line
from lora_mnist.show.reading import Reading

#: How overrides begin that say which images, network and base: the next command repeats them.
_REPEATED = ("--config-dir", "classifier", "data", "prepare", "net", "paths", "base_")


def next_step(reading: Reading, folder: Path) -> str | None:
    """After the test of a base in ``folder``: the command that repairs its weakest class."""
    total, training = reading.total, reading.training_images
    # A run that was called from Python has no command line that says what it ran on.
    is_known = reading.overrides is not None and not reading.better_preprocessing
    has_errors = "val" not in reading.counts or reading.counts["val"]["errors"] > 0
    has_images = sum(training) > max(training) and reading.validation_images and has_errors
    # Mending so few errors could be chance; a base that gets half wrong needs training.
    worst = reading.change([reading.weakest_class()])
    is_worth_it = mcnemar(worst.after, 0) <= LEVEL and 2 * total.after < total.images
    if reading.is_repair or not (is_known and has_images and is_worth_it):
        return None
    overrides = ["experiment=repair", "target=weakest"]  # on validation images
    if reading.weights:  # the file of a base that is not the current one
        overrides.append(f"base_ckpt={in_grammar(relpath(folder / reading.weights))}")
    given = [key_of(text) for text in overrides]
    for text in reading.overrides or ():
        if key_of(text).startswith(_REPEATED) and key_of(text) not in given:
            overrides.append(text)
    return command_line("train", overrides)
