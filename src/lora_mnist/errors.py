"""Mistakes that a user can make, and how their one line is worded."""

import math
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: The keys of prepare: how a picture becomes an input, and what the outputs are called.
PREPARE = (
    *("classes", "channels", "image_size", "resize", "crop_pct", "interpolation"),
    *("mean", "std", "transform"),
)
#: Arguments whose key is in another group than that of the function which takes them; "": in none.
_GROUP_OF = {"target": "", "mistakes_test": "", **dict.fromkeys(PREPARE, "prepare")}
_PACKAGE = Path(__file__).resolve().parent


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


def require_one_of(key: str, value: Any, choices: Iterable[str | int]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in list(choices):
        raise ValueError(f"{key}={value}: expected one of {', '.join(map(str, choices))}")


def nearest_to(name: str, names: Iterable[str]) -> str:
    """``; the nearest is NAME``, to be put behind a name that is none of ``names``."""
    nearest = get_close_matches(name, names, n=1)
    return f"; the nearest is {nearest[0]}" if nearest else ""


@contextmanager
def config_group(group: str) -> Iterator[None]:
    """Inside the ``with`` block, our ``ValueError("argument=value: ...")`` names its config key.

    It becomes a :class:`UserError`, and so does what Hydra could not make. All other errors pass.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        is_ours = isinstance(error, ValueError) and _PACKAGE in innermost.parents
        if type(error).__name__ == "InstantiationException":  # Hydra's, which is not imported here
            cause, is_ours = error.__cause__ or error, True
        if not is_ours or error_in_user_code(error):
            raise
        message = one_line(cause)
        argument, sign, _ = message.partition("=")
        if not (sign and argument.isidentifier()):
            message = f"{group}: {message}"
        else:
            message = f"{_GROUP_OF.get(argument, group)}.{message}".lstrip(".")
        raise UserError(message) from error


def error_in_user_code(error: BaseException) -> str | None:
    """``my_nets.py:14 in forward: TypeError: ...``, if it was raised in code of a user's own.

    That is code which ours has called; an entry such as train.py, which cli.py calls, is ours.
    """
    line, is_called_by_us = None, False
    cause: BaseException | None = error
    while cause is not None:
        caller = None
        for frame in traceback.extract_tb(cause.__traceback__):
            file = Path(frame.filename)
            if _PACKAGE in file.parents:
                is_called_by_us = True
            elif is_called_by_us and caller != _PACKAGE / "cli.py" and _is_own_code(file):
                place = f"{file.name}:{frame.lineno} in {frame.name}"
                line = f"{place}: {type(cause).__name__}: {one_line(cause)}"
            caller = file
        cause = cause.__cause__
    return line


def _is_own_code(file: Path) -> bool:
    """Whether a file of code is a user's own: neither ours, nor in a library."""
    is_installed = "site-packages" in file.parts or "dist-packages" in file.parts
    is_generated = file.name.startswith("<")  # as torch.compile does
    is_pythons = Path(sysconfig.get_path("stdlib")) in file.parents
    return not (_PACKAGE in file.parents or is_installed or is_generated or is_pythons)


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
