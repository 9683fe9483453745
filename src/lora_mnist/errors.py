"""The errors that a user can cause, and how each is told in one line."""

import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_mnist.lora.errors import ArgumentError as ArgumentError
from lora_mnist.lora.errors import is_number as is_number
from lora_mnist.lora.errors import require as require

#: The keys of prepare: how a picture becomes an input, and what the outputs are called.
PREPARE = (
    *("classes", "channels", "image_size", "resize", "crop_pct", "interpolation"),
    *("mean", "std", "transform"),
)
#: The right group of keys that are easily written under a wrong one.
GROUP_OF = dict.fromkeys(PREPARE, "prepare")
GROUP_OF |= dict.fromkeys(("batch_size", "replay", "seed", "augment"), "batches")
#: Lightning's and Hydra's errors for a wrong value; neither is imported here.
_SAY_ENOUGH = ("MisconfigurationException", "InstantiationException")
_PACKAGE = Path(__file__).resolve().parent
_CALLERS = (_PACKAGE / "cli.py", _PACKAGE / "sweep.py")  # of an entry


class UserError(Exception):
    """An error that is told in one line: key, value and what is accepted, without a traceback."""

    exit_code = 2


class IncompleteError(UserError):
    """The command did what it could, and named what it could not do."""

    exit_code = 1


class TrainingError(UserError):
    """Training led nowhere: it diverged, or nothing was learnt."""

    exit_code = 1


def require_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a number from ``least`` to ``most``."""
    is_inside = is_number(value) and least <= value <= most
    require(is_inside, name, value, f"a number from {least:g} to {most:g}")


def require_one_of(name: str, value: Any, choices: Iterable[str | int]) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is one of ``choices``."""
    require(value in list(choices), name, value, f"one of {', '.join(map(str, choices))}")


def as_value(value: Any) -> str:
    """A value as it is typed behind a key: ``[0.5,0.5]``, ``{_target_: my.Crop, size: 8}``."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def nearest_to(name: str, names: Iterable[str]) -> str:
    """``; the nearest is NAME``, to be put behind a name that is none of ``names``."""
    nearest = get_close_matches(name, names, n=1)
    return f"; the nearest is {nearest[0]}" if nearest else ""


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Inside the ``with`` block, an error of a file is told as one of ``setting``."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"{setting}: {one_line(error)}") from error


@contextmanager
def config_group(group: str) -> Iterator[None]:
    """Inside the ``with`` block, an error of a library becomes a :class:`UserError`.

    Its line begins with the key of the argument that cannot be used, or with the ``group``. An
    error in a user's own code passes: its file and line are told instead.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        if type(error).__name__ == "InstantiationException":  # Hydra's, which is not imported here
            cause = error.__cause__ or error
        if isinstance(cause, ArgumentError):
            key = f"{GROUP_OF.get(cause.name, group)}.{cause.name}"
            raise UserError(f"{key}={as_value(cause.value)}: {cause.reason}") from error
        if error_in_user_code(error):
            raise
        raise UserError(f"{group}: {described(cause)}") from error


def says_enough(error: BaseException) -> bool:
    """Whether the message of a library's error needs no name of the error before it."""
    return isinstance(error, ValueError) or type(error).__name__ in _SAY_ENOUGH


def described(error: BaseException) -> str:
    """The message of a library's error in a line, after the error's name where that says more."""
    name = "" if says_enough(error) else f"{type(error).__name__}: "
    return name + one_line(error)


def error_in_user_code(error: BaseException) -> str | None:
    """``my_nets.py:14 in forward: TypeError: ...``, if it was raised in code of a user's own.

    That is code which ours has called, but for an entry such as train.py, which is ours.
    """
    line, is_called_by_us = None, False
    cause: BaseException | None = error
    while cause is not None:
        for frame in traceback.extract_tb(cause.__traceback__):
            file = Path(frame.filename)
            if _PACKAGE in file.parents:
                is_called_by_us = file not in _CALLERS
            elif is_called_by_us and _is_own_code(file):
                place = f"{file.name}:{frame.lineno} in {frame.name}"
                line = f"{place}: {type(cause).__name__}: {one_line(cause)}"
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
    return " ".join(printable(text).split())


def printable(text: object) -> str:
    """A text or a path that UTF-8 has: a file may be named in Latin-1."""
    return str(text).encode(errors="backslashreplace").decode()


def require_extra(key: str, extra: str, *packages: str) -> None:
    """Refuse ``key`` where the packages of an extra are not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                f"{key}: the package {package} is missing; "
                f'expected the extra {extra}: pip install "lora-mnist[{extra}]"'
            )
