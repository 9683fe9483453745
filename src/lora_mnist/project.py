"""The project's folder, users' paths, and commands to print. Imports neither torch nor Hydra."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
#: The commands, by the names of their configurations, and the functions that they run.
COMMANDS = {
    "train": "lora_mnist.commands.train.train",
    "eval": "lora_mnist.commands.evaluate.evaluate",
    "predict": "lora_mnist.commands.predict.predict",
    "export": "lora_mnist.commands.export.export",
    "demo": "lora_mnist.commands.demo.demo",
}


def expand_path(path: object) -> Path:
    """Return a user's path, relative to the current folder; its name may be a number."""
    return Path(os.path.expanduser(str(path)))  # noqa: PTH111  # ~nobody stays as it is


@contextmanager
def import_from_here() -> Iterator[None]:
    """Let Python import from the current folder inside the ``with`` block."""
    path = list(sys.path)
    sys.path.append(str(Path.cwd()))  # last: a timm.py that lies there is not timm
    try:
        yield
    finally:
        sys.path[:] = path


def format_program(name: str) -> str:
    """Return the command ``name`` to type here, such as ``python ../train.py``."""
    if CONFIGS.parent == _PACKAGE:
        return f"lora-mnist {name}"
    entry = PROJECT / f"{name}.py"
    if Path.cwd().is_relative_to(PROJECT):
        entry = Path(os.path.relpath(entry))
    return f"python {shlex.quote(str(entry))}"


def install_command(extra: str) -> str:
    """Return the command that installs an extra, of the checkout or of the installed package."""
    if CONFIGS.parent == _PACKAGE:
        return f'pip install "lora-mnist[{extra}]"'
    return f'pip install -e "{os.path.relpath(PROJECT)}[{extra}]"'


def format_command(name: str, arguments: Iterable[str]) -> str:
    """Return a whole command, ready to paste into bash or zsh."""
    return " ".join([format_program(name), *map(quote, arguments)])


def quote(text: str) -> str:
    """Quote one argument for the shell, where it needs quotes."""
    # Hydra's own quotes are single quotes, which shlex would break into five pieces.
    return f'"{text}"' if "'" in text and not set('"$`\\!') & set(text) else shlex.quote(text)
