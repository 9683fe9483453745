"""Dotted keys, as a sweep has them in its table; no torch."""

import re
from typing import Any

#: What is counted of a part, such as val, in results.json; of a list each has its number.
COUNTS = """
accuracy balanced_accuracy errors loss repaired broken negative_flip_rate errors_of_target
errors_elsewhere false_calls_of_target precision_of_target p_value p_value_of_target
p_value_elsewhere p_value_balanced errors_per_class called_per_class false_calls_per_class
images_per_class repaired_per_class broken_per_class
"""


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2, 3]}}`` as ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}``."""
    if not isinstance(nested, dict | list):
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def numeric_sort_key(text: str) -> tuple[bool, float, str]:
    """Sort key of what was typed: numbers by value, before everything else."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def better_end(key: str) -> str:
    """``max`` for accuracies, precisions and repaired images, ``min`` for all other numbers."""
    return "max" if re.search("accuracy|precision|repaired", key) else "min"
