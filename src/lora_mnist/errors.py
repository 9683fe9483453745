"""Mistakes that a user can make, told in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

#: Arguments that have another name on the command line.
_KEYS = {"target": "digit"}


class UserError(Exception):
    """Something only the user can mend. The message names key, value and what is accepted.

    Attributes:
        exit_code: of the process that it ends.
    """

    exit_code = 2


class IncompleteError(UserError):
    """The command did what it could, and named what it could not do."""

    exit_code = 1


class RequirementError(UserError):
    """The results are there, and are not what ``require`` asks for."""

    exit_code = 1


class TrainingError(UserError):
    """Training led nowhere: it diverged, or nothing was learnt."""

    exit_code = 1


@contextmanager
def config_group(group: str) -> Iterator[None]:
    """Turn an error about an argument into a :class:`UserError` about its config key.

    The package's functions word theirs ``argument=value: expected ...``; with the group in front
    that reads ``group.argument=value: expected ...``. Python refuses an unknown argument with a
    ``TypeError``, and Hydra wraps what a constructor raises.
    """
    try:
        yield
    except OmegaConfBaseException:  # names its key itself
        raise
    except (ValueError, TypeError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        message = one_line(cause or error)
        argument = re.match(r"\w+(?==)", message)
        if argument and argument[0] in _KEYS:
            message = _KEYS[argument[0]] + message.removeprefix(argument[0])
        else:
            message = f"{group}{'.' if argument else ': '}{message}"
        raise UserError(message) from error


def one_line(text: object) -> str:
    """The message of an error, or another text, without line breaks."""
    return " ".join(str(text).split())


def missing_extra(key: str, extra: str, error: ImportError) -> UserError:
    """What to say where ``key`` needs packages that are not installed."""
    return UserError(
        f"{key}: the package {error.name} is missing; "
        f'expected the extra {extra}: pip install "lora-mnist[{extra}]"'
    )
