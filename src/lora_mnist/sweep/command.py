"""Commands to print: ready to paste into a shell, in Hydra's grammar."""

import re
import shlex
from collections.abc import Iterable

from hydra.core.override_parser.types import Quote, QuotedString

from lora_mnist.project import program


def command_line(arguments: Iterable[str], entry: str | None = None) -> str:
    """A command of ``entry``, or of the program that runs, ready to paste into bash or zsh."""
    return " ".join([entry or program(), *map(quoted, arguments)])


def quoted(text: str) -> str:
    """One argument, quoted for the shell only where it must be."""
    # Hydra's own quotes are single quotes, which shlex would break into five pieces.
    return f'"{text}"' if "'" in text and not set('"$`\\!') & set(text) else shlex.quote(text)


def override(key: str, value: object) -> str:
    """``key=value`` as Hydra's override grammar has it, quoted only where it must be."""
    text = str(value)
    if not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        text = QuotedString(text, Quote.single).with_quotes()
    return f"{key}={text}"


def key_of(override: str) -> str:
    """The key that an override of the command line sets."""
    return override.split("=", 1)[0].lstrip("+~")
