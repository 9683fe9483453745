"""The errors of this package for arguments that cannot be used."""

import sys
from collections.abc import Mapping
from typing import Any


class ArgumentError(ValueError):
    """An argument that cannot be used: ``name=value: reason``."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"{name}={value}: {reason}")
        self.name, self.value, self.reason = name, value, reason


def require(is_met: bool, name: str, value: object, expected: str) -> None:
    """Raise :class:`ArgumentError` unless a condition on an argument is met."""
    if not is_met:
        raise ArgumentError(name, value, f"expected {expected}")


def is_number(value: object) -> bool:
    """Return whether ``value`` is a number that a float can hold, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def check_types(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file's ``values`` have each key, with a value of its type."""
    for key, type_ in types.items():
        value = values.get(key)
        if not (is_number(value) if type_ is float else isinstance(value, type_)):
            raise ValueError(f"{key}={value}: expected {getattr(type_, '__name__', type_)}")
