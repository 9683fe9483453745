"""The numbers of results.json by their dotted keys, and what ``require`` asks of them; no torch."""

import operator
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lora_mnist.errors import RequirementError, UserError

_SIGNS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_COMPARISON = re.compile(rf"\s*([\w.+-]+)\s*({'|'.join(_SIGNS)})\s*([\w.+-]+)\s*")

#: Where a run's folder has them.
RESULTS_FILE = "results.json"
#: Keys of the configuration that change no number of a run, nor do those below them. A run that is
#: resumed, and a sweep, may have others than before.
FREE_KEYS = (
    "callbacks.checkpoint",
    "figures",
    "hydra",
    "logger",
    "notes",
    "paths",
    "publish",
    "require",
    "resume",
    "run_name",
    "sweep",
    "tags",
    "trust",
)

#: Left side, sign, right side.
Comparison = tuple[str, str, str]


def flatten(nested: Any, prefix: str = "", into: Any = dict | list) -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2, 3]}}`` as ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}``.

    ``into=dict`` leaves lists as they are: ``{"a.b": 1, "a.c": [2, 3]}``.
    """
    if not isinstance(nested, into):
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key), into)
    return flat


def changes_numbers(key: str) -> bool:
    """Whether a key such as ``lora.rank`` may change what a run computes."""
    return not any(f"{key}.".startswith(f"{free}.") for free in FREE_KEYS)


def better_end(key: str) -> str:
    """Which end of a number is better: ``max`` or ``min``, for losses, errors, sizes and times."""
    return "max" if "accuracy" in key or "repaired" in key else "min"


def parse_require(require: Any) -> list[Comparison]:
    """Take the comparisons of ``require`` apart: a text, a list of them, or ``None``.

    On each side stands a number or a dotted key of results.json, as in ``test.broken <= 20``.
    UserError, if one is no comparison.
    """
    texts = [require] if isinstance(require, str | int | float) else list(require or [])
    comparisons: list[Comparison] = []
    for text in texts:
        found = _COMPARISON.fullmatch(str(text))
        if not found:
            raise UserError(
                f"require={text}: expected two numbers or keys of results.json with one of "
                f"{' '.join(_SIGNS)} between them, as test.broken <= 20"
            )
        comparisons.append((found[1], found[2], found[3]))
    return comparisons


def check_require(comparisons: list[Comparison], results: Mapping[str, Any]) -> None:
    """Compare the numbers of results.json.

    UserError, if it has no such number; RequirementError, with all comparisons that do not hold.
    """
    known = {key: v for key, v in flatten(dict(results)).items() if type(v) in (int, float)}
    unmet = []
    for left, sign, right in comparisons:
        values = []
        for side in (left, right):
            try:
                values.append(known[side] if side in known else float(side))
            except ValueError as error:
                alike = get_close_matches(side, known, n=5) or list(known)
                raise UserError(
                    f"require={left} {sign} {right}: results.json has no number {side}; "
                    f"expected one like {', '.join(alike)}"
                ) from error
        if not _SIGNS[sign](values[0], values[1]):
            first, second = (known.get(side, side) for side in (left, right))
            unmet.append(f"{left} {sign} {right}: {first} {sign} {second} does not hold")
    if unmet:
        raise RequirementError(f"require={'; '.join(unmet)}")
