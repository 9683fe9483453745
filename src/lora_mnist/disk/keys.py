"""Dotted keys, and which of them change a number; no torch."""

import re
from typing import Any

#: These keys, and those below them, change no number.
_FREE_KEYS = "callbacks.checkpoint figures hydra logger paths run_name sweep"


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2, 3]}}`` as ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}``."""
    if not isinstance(nested, dict | list):
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def affects_results(key: str) -> bool:
    """Whether a key such as ``lora.rank`` may change what a run computes."""
    return not any(f"{key}.".startswith(f"{free}.") for free in _FREE_KEYS.split())


def numeric_sort_key(text: str) -> tuple[bool, float, str]:
    """Sort key of what was typed: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def better_end(key: str) -> str:
    """``max`` for accuracies, precisions and repaired images, ``min`` for all other numbers."""
    return "max" if re.search("accuracy|precision|repaired", key) else "min"
