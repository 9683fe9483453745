"""Choices: values that validation images or a rule decided, or the user set, with reasons."""

from collections.abc import Sequence
from typing import Any, NamedTuple

#: The value of a key that is decided in a run.
AUTO = "auto"


class Reason:
    """A reason for a choice: a code, and its facts by name. :mod:`.show.reasons` has the words.

    The facts are numbers, names, lists and dicts: what JSON can hold.
    """

    def __init__(self, code: str, **facts: Any) -> None:
        self.code, self.facts = code, facts

    @property
    def record(self) -> dict[str, Any]:
        """The reason as an entry of results.json."""
        return {"code": self.code, **self.facts}


class Choice(NamedTuple):
    """A value that was chosen, with the reasons."""

    value: Any
    reasons: Sequence[Reason]
    of: Sequence[Any] | None = None  # the values to choose from; None: they are not listed
    images: int = 0  # the number of validation images that decided

    @property
    def is_set(self) -> bool:
        """True if the command line or the configuration has the value."""
        return all(reason.code == "set" for reason in self.reasons)

    @property
    def record(self) -> dict[str, Any]:
        """The choice as an entry of results.json."""
        reasons = [reason.record for reason in self.reasons]
        return {"value": self.value, "of": self.of, "images": self.images, "reasons": reasons}
