"""Mistakes that a user can make, and how their one line is worded."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

#: Arguments whose key is in no group.
_ROOT_KEYS = ("target",)


class UserError(Exception):
    """An error that is told in one line: key, value and what is accepted, without a traceback."""

    exit_code = 2


class IncompleteError(UserError):
    """The command did what it could, and named what it could not do."""

    exit_code = 1


class TrainingError(UserError):
    """Training led nowhere: it diverged, or nothing was learnt."""

    exit_code = 1


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number, and no bool."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]


def require_number(key: str, value: Any, least: float, most: float) -> None:
    """Raise ValueError unless ``value`` is a number from ``least`` to ``most``."""
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"{key}={value}: expected a number from {least:g} to {most:g}")


@contextmanager
def config_group(group: str) -> Iterator[None]:
    """Turn an error about an argument into a :class:`UserError` about its config key.

    The package's functions word theirs ``argument=value: expected ...``; with the group in front
    that reads ``group.argument=value: expected ...``. Hydra wraps what a constructor raises.
    """
    try:
        yield
    except OmegaConfBaseException:  # names its key itself
        raise
    except (ValueError, TypeError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        message = one_line(cause or error)
        argument = re.match(r"\w+(?==)", message)
        unknown = re.search(r"keyword argument '(\w+)'", message)
        if unknown:
            message = f"{group}.{unknown[1]}: {message}"
        elif not argument:
            message = f"{group}: {message}"
        elif argument[0] not in _ROOT_KEYS:
            message = f"{group}.{message}"
        raise UserError(message) from error


def one_line(text: object) -> str:
    """A text, or the message of an error, without line breaks."""
    return " ".join(str(text).split())


def require_extra(key: str, extra: str, *packages: str) -> None:
    """Refuse ``key`` where the packages of an extra are not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                f"{key}: the package {package} is missing; "
                f'expected the extra {extra}: pip install "lora-mnist[{extra}]"'
            )
