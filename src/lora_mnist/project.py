"""Where the project is, and how its commands are typed there. Imports neither torch nor Hydra."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: The configurations. A wheel has them in the package, a checkout beside ``src``.
CONFIGS = _PACKAGE / "configs"
# MNIST's ``data/`` is in the checkout; for an installed package it is where the user is.
PROJECT = Path.cwd()
if not CONFIGS.is_dir():
    PROJECT = _PACKAGE.parents[1]
    CONFIGS = PROJECT / "configs"
DATA = PROJECT / "data"


def other_checkout() -> Path | None:
    """The checkout whose ``train.py`` or other entry was started, where another package runs."""
    checkout = Path(sys.argv[0]).resolve().parent
    package = checkout / "src" / "lora_mnist"
    return checkout if package.is_dir() and package != _PACKAGE else None


def program(name: str | None = None) -> str:
    """How the command ``name``, or the one that runs, is typed: ``python ../train.py``."""
    if Path(sys.argv[0]).stem == "lora-mnist":
        return f"lora-mnist {name or sys.argv[2]}"  # entry.py has put --config-name before the word
    typed = Path(sys.argv[0])
    if name is not None:
        is_entry = typed.resolve().parent == PROJECT  # and no notebook's kernel
        typed = typed.with_name(f"{name}.py") if is_entry else Path(f"{name}.py")
    return f"python {shlex.quote(str(typed))}"


def command_line(arguments: Iterable[str], entry: str | None = None) -> str:
    """A command of ``entry``, or of the program that runs, ready to paste into bash or zsh."""
    return " ".join([entry or program(), *map(quoted, arguments)])


def quoted(text: str) -> str:
    """One argument, quoted for the shell only where it must be."""
    # Hydra's own quotes are single quotes, which shlex would break into five pieces.
    return f'"{text}"' if "'" in text and not set('"$`\\!') & set(text) else shlex.quote(text)
