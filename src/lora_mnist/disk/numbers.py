"""The numbers in results.json by dotted keys, and the comparisons of ``require``; no torch."""

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

#: These keys, and those below them, change no number. A resumed run or sweep may change them.
_FREE_KEYS = """
callbacks.checkpoint figures hydra logger notes paths publish require resume run_name sweep tags
trust
"""


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


def affects_results(key: str) -> bool:
    """Whether a key such as ``lora.rank``, or ``+lora.rank``, may change what a run computes."""
    key = key.lstrip("+~")
    return not any(f"{key}.".startswith(f"{free}.") for free in _FREE_KEYS.split())


def better_end(key: str) -> str:
    """``max`` for accuracies, precisions and repaired images, ``min`` for all other numbers."""
    return "max" if re.search("accuracy|precision|repaired", key) else "min"


def parse_require(require: Any) -> list[tuple[str, str, str]]:
    """Parse ``require``, a text such as ``test.broken <= 20``, a list of texts, or ``None``.

    Each side is a number or a dotted key of results.json. Raises UserError for anything else.
    """
    texts = [require] if isinstance(require, str | int | float) else list(require or [])
    comparisons = []
    for text in texts:
        match = _COMPARISON.fullmatch(str(text))
        if not match:
            raise UserError(
                f"require={text}: expected two numbers or keys of results.json with one of "
                f"{' '.join(_SIGNS)} between them, as test.broken <= 20"
            )
        comparisons.append((match[1], match[2], match[3]))
    return comparisons


def check_require(comparisons: list[tuple[str, str, str]], results: Mapping[str, Any]) -> None:
    """Compare numbers of results.json: left side, sign, right side.

    Raises UserError for a key that it does not have, RequirementError with all comparisons that do
    not hold.
    """
    numbers = {key: v for key, v in flatten(dict(results)).items() if type(v) in (int, float)}
    unmet = []
    for left, sign, right in comparisons:
        values = []
        for side in (left, right):
            try:
                values.append(numbers[side] if side in numbers else float(side))
            except ValueError as error:
                alike = get_close_matches(side, numbers, n=5) or list(numbers)
                raise UserError(
                    f"require={left} {sign} {right}: results.json has no number {side}; "
                    f"expected one like {', '.join(alike)}"
                ) from error
        if not _SIGNS[sign](values[0], values[1]):
            first, second = (numbers.get(side, side) for side in (left, right))
            unmet.append(f"{left} {sign} {right}: {first} {sign} {second} does not hold")
    if unmet:
        raise RequirementError(f"require={'; '.join(unmet)}")
