"""Mistakes that a user can make, told in one line."""

import errno
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)

_NAMES_ARGUMENT = re.compile(r"(\w+)=").match
_NUMBER_AT_END = re.compile(r"\((?:os error )?(\d{1,3})\)$").search
_LACKS_MEMORY = re.compile(r"(allocate|out of) memory|[Ss]torage size .*overflow").search
#: Arguments that have another name on the command line.
_KEYS = {"target": "digit"}
_LONGEST_MESSAGE = 2000


class UserError(CompactHydraException):
    """Something only the user can mend. The message names key, value and what is accepted.

    Hydra prints exceptions of this family as their message alone.

    Attributes:
        exit_code: of the process that it ends.
    """

    exit_code = 2


class IncompleteError(UserError):
    """The command did what it could, and named what it could not do."""

    exit_code = 1


class TrainingError(UserError):
    """Training led nowhere: it diverged, or nothing was learnt."""

    exit_code = 1


@contextmanager
def config_group(group: str) -> Iterator[None]:
    """Turn an error about an argument into a :class:`UserError` about its config key.

    The package's functions word theirs ``argument=value: expected ...``; with the group in front
    that reads ``group.argument=value: expected ...``. Python refuses an argument that is unknown
    or of a wrong type with a ``TypeError``; torch one that asks for more memory than there is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise UserError(f"{group}: {one_line(error)}") from error
    except (ValueError, TypeError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        if isinstance(error, OmegaConfBaseException):
            raise bad_value(error, group) from error
        message = one_line(cause or error)
        argument = _NAMES_ARGUMENT(message)
        if argument and argument[1] in _KEYS:
            message = _KEYS[argument[1]] + message.removeprefix(argument[1])
        else:
            message = f"{group}{'.' if argument else ': '}{message}"
        raise UserError(message) from error


def bad_value(error: OmegaConfBaseException, group: str = "configuration") -> UserError:
    """What to say of a value that OmegaConf cannot give, such as ``${nope}`` or ``???``."""
    reason = str(error).partition("\n    full_key:")[0]  # what follows is for programmers
    return UserError(f"{error.full_key or group}: {' '.join(reason.split())}")


def missing_extra(key: str, extra: str, error: ImportError) -> UserError:
    """What to say where ``key`` needs packages that are not installed."""
    return UserError(
        f"{key}: the package {error.name} is missing; "
        f'expected the extra {extra}: pip install -e ".[{extra}]"'
    )


def described(error: BaseException) -> str:
    """What went wrong in one line: the message, and whose it is unless it is Hydra's or ours."""
    if isinstance(error, CompactHydraException):
        # Hydra says which override it is about, OmegaConf what is wrong with it.
        cause = error.__cause__
        more = f": {one_line(cause)}" if isinstance(cause, OmegaConfBaseException) else ""
        return one_line(error) + more
    error = full_disk(error) or error
    return f"{type(error).__name__}: {one_line(error)}"


def full_disk(error: BaseException | None) -> OSError | None:
    """The full disk, or used up quota, behind ``error``."""
    return _behind(error, (errno.ENOSPC, errno.EDQUOT))


def lacks_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is not enough memory; torch has no class for it."""
    return isinstance(error, MemoryError) or bool(_LACKS_MEMORY(str(error)))


def used_up(error: BaseException | None) -> OSError | None:
    """What the machine has no more of, behind ``error``: disk, size of a file, or open files."""
    more = (errno.EFBIG, errno.EMFILE, errno.ENFILE)
    return full_disk(error) or _behind(error, more)


def _of_a_file(error: BaseException) -> OSError | None:
    """``error``, if it says which file could not be read or written."""
    return error if isinstance(error, OSError) and error.filename else None


def _behind(error: BaseException | None, numbers: tuple[int, ...]) -> OSError | None:
    seen: list[BaseException] = []  # an error that a thread left to be raised can be behind itself
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        # What is written in Rust or C++ has the number in its message alone.
        told = _NUMBER_AT_END(str(error))
        if told and int(told[1]) in numbers:
            return OSError(int(told[1]), os.strerror(int(told[1])))
        error = error.__cause__ or error.__context__
    return None


def is_full_error_wanted() -> bool:
    """Whether the user has asked for tracebacks, in Hydra's way."""
    return os.environ.get("HYDRA_FULL_ERROR", "0") != "0"


def printable(text: str) -> str:
    """``text``, with what would move a terminal's cursor, or colour it, written out.

    Names of a stranger's files may hold such.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: object, most: int = _LONGEST_MESSAGE) -> str:
    """The message of ``error``, or another text, without line breaks, of bearable length."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with the one line of a :class:`UserError` and its exit code.

    So ends a process that cannot read or write a file, or for which the machine has no more memory
    or no more of what :func:`used_up` knows, with code 1, and one with a value that OmegaConf
    cannot give, with 2. With ``HYDRA_FULL_ERROR=1`` the error goes on to Hydra, for its traceback.
    """
    hook = threading.excepthook

    def report(args: threading.ExceptHookArgs) -> None:
        # A thread that writes for us fails first; the error then comes up here.
        error = args.exc_value
        known = error is not None and (used_up(error) or _of_a_file(error))
        if not known or is_full_error_wanted():
            hook(args)

    threading.excepthook = report
    try:
        yield
    except UserError as error:
        log.error("%s", one_line(error))
        if is_full_error_wanted():
            raise
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        lacking = used_up(error) or _of_a_file(error)
        if is_full_error_wanted():
            raise
        if isinstance(error, OmegaConfBaseException):
            log.error("%s", bad_value(error))
            raise SystemExit(UserError.exit_code) from error
        if lacks_memory(error):
            log.error("not enough memory: %s; what was there before is whole", one_line(error))
            raise SystemExit(1) from error
        if lacking is None:
            raise
        where = f"{lacking.filename}: " if lacking.filename else ""
        log.error("%s%s; what was there before is whole", where, lacking.strerror)
        raise SystemExit(1) from error
    finally:
        threading.excepthook = hook
