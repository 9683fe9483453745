"""A choice: a value that validation images decided, or that was set, and why."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lora_mnist.errors import as_value

log = logging.getLogger(__name__)

#: The value of a key that images decide.
AUTO = "auto"
#: The keys that set choices of other names.
_KEY_OF = {"learning_rate": "optimizer.lr", "augment": "batches.augment"}


class Choice(NamedTuple):
    """A value that was chosen, with the reason."""

    value: Any
    of: Sequence[Any] | None = None  # the values to choose from; None: they are not listed
    images: int = 0  # the number of validation images that decided
    why: str = ""
    is_set: bool = False  # on the command line, or in the configuration

    @property
    def record(self) -> dict[str, Any]:
        """The choice as an entry of results.json."""
        return {"value": self.value, "of": self.of, "images": self.images, "why": self.why}


def log_choices(choices: Mapping[str, Choice]) -> None:
    """Log what was chosen, but not what somebody has set."""
    for name, choice in choices.items():
        if not choice.is_set:
            log.info("%s", format_choice(name, choice.value, choice.why, of_repair=True))


def format_choice(name: str, value: Any, why: str, of_repair: bool = False) -> str:
    """``optimizer.lr=0.003: for 60 images``: a choice by its keys, those of a repair's run."""
    if name == "point":
        prefix = "lora." if of_repair else ""
        keys = [f"{prefix}{field}={number:g}" for field, number in value.items()]
        return f"{' '.join(keys)}: {why}"
    key = _KEY_OF.get(name, name)
    shown = ", ".join(value) if isinstance(value, list) else as_value(value)
    return f"{key}={shown}: {why}"
