"""Errors that a user can cause by a key, a value or a file, reported in one line each."""

import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lora_mnist.lora.errors import ArgumentError as ArgumentError
from lora_mnist.lora.errors import is_number as is_number
from lora_mnist.lora.errors import require as require
from lora_mnist.project import install_command

#: The keys of prepare that resize a picture, and all keys of prepare.
SIZING = ("image_size", "resize", "crop_pct", "interpolation")
PREPARE = ("classes", "channels", *SIZING, "mean", "std", "transform")
#: Where the standard library is, and this package, which may be read from a checkout.
_LIBRARIES = (sysconfig.get_path("stdlib"), str(Path(__file__).parent))


class UserError(Exception):
    """An error reported without a traceback, in one line with key, value and accepted values."""

    exit_code = 2


class PictureError(UserError, ValueError):
    """A picture that cannot be read, or shows nothing."""


class IncompleteError(UserError):
    """The command was done in part, and has named the rest."""

    exit_code = 1


class TrainingError(UserError):
    """Training diverged, or made a useless network."""

    exit_code = 1


class OutputsError(TrainingError, ValueError):
    """A network gives outputs that are not finite."""


def require_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a number from ``least`` to ``most``."""
    is_inside = is_number(value) and least <= value <= most
    require(is_inside, name, value, f"a number from {least:g} to {most:g}")


def require_choice(name: str, value: Any, choices: Iterable[str | int]) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is one of ``choices``."""
    require(value in list(choices), name, value, f"one of {', '.join(map(str, choices))}")


def format_value(value: Any) -> str:
    """Return a value as the command line takes it: ``[0.5,0.5]``, ``{_target_: my.Crop, a: 8}``."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):  # OmegaConf's, too
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def suggest_nearest(name: str, names: Iterable[str]) -> str:
    """Return ``; the nearest is NAME``, for a message about a name that ``names`` lacks."""
    nearest = get_close_matches(name, names, n=1) if len(name) > 2 else []  # 1 is not near to 11
    return f"; the nearest is {nearest[0]}" if nearest else ""


@contextmanager
def report_as(setting: str, joined: str = ": ") -> Iterator[None]:
    """Report errors of a file inside the ``with`` block as errors of ``setting``."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(f"{setting}{joined}{one_line(error)}") from error


@contextmanager
def report_group_errors(group: str) -> Iterator[None]:
    """Report a library's errors inside the block as errors of the key ``group``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Hydra, which is not imported here, makes it the cause of an error of its own.
        is_of_hydra = type(error).__name__ == "InstantiationException"
        cause = (error.__cause__ if is_of_hydra else None) or error
        if isinstance(cause, ArgumentError):
            raise UserError(format_refusal(cause, group)) from error
        if _is_of_libraries(cause):
            raise UserError(f"{group}: {type(cause).__name__}: {one_line(cause)}") from error
        # The error is in a user's own code: the traceback says more than a line.
        cause.add_note(f"{group}: the error came while this was made or called")
        raise cause from cause.__cause__


def format_refusal(error: ArgumentError, group: str = "") -> str:
    """Return the line about an argument that cannot be used, which is a key of ``group``."""
    group = "prepare" if error.name in PREPARE else group  # a data set takes both
    key = f"{group}.{error.name}".lstrip(".")
    return f"{key}={format_value(error.value)}: {error.reason}"


def _is_of_libraries(error: BaseException | None) -> bool:
    """Return whether no code of the user's own is in the error's traceback."""
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            file = Path(frame.f_code.co_filename)
            is_installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
            # A library makes the code of <string>.
            if not is_installed and not str(file).startswith((*_LIBRARIES, "<")):
                return False
        error = error.__cause__
    return True


def one_line(text: object) -> str:
    """Return a text, or the message of an error, without line breaks."""
    if isinstance(text, OSError) and text.strerror:  # Python's has [Errno 2]
        text = f"{text.strerror}: {text.filename}" if text.filename else text.strerror
    return printable(" ".join(str(text).split()))


def printable(text: object) -> str:
    """Return a text or a path in UTF-8 without control characters; names may be in Latin-1."""
    text = str(text).encode(errors="backslashreplace").decode()
    return re.sub(r"[^\n\t -~\xa0-\U0010ffff]", lambda found: ascii(found[0])[1:-1], text)


def require_extra(key: str, extra: str, *packages: str) -> None:
    """Raise an error of ``key`` if the packages of an extra are not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                f"{key}: the package {package} is missing; "
                f"expected the extra {extra}: {install_command(extra)}"
            )
