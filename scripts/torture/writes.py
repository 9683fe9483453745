"""The moments at which a command touches the disk, counted; something can happen at one of them.

Python tells an audit hook of each file that is about to be opened, renamed, deleted or made
(PEP 578). So the n-th such moment of a command is found without a change in any of its code.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}


def at_write(
    number: int, then: Callable[[str, str], None], folder: Path, lasts: bool = False
) -> None:
    """Call ``then`` with the event and the path before the ``number``-th write, counted from 1.

    Args:
        number: of the write.
        then: may raise an OSError, which the write then ends with, or end the process.
        folder: of the writes; those elsewhere do not count.
        lasts: call it at all later writes, too.
    """
    count = 0
    prefix = str(folder.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & _WRITES):
                return
        elif event in _EVENTS:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 a hook must not call much
        if name.startswith(prefix):
            count += 1
            if count == number or (lasts and count > number):
                then(event, name)

    sys.addaudithook(hook)


def count_writes(folder: Path, told: Path) -> None:
    """Add a byte to the file ``told`` for each write in ``folder``."""
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    at_write(1, lambda event, path: _count(descriptor), folder, lasts=True)


def _count(descriptor: int) -> None:
    os.write(descriptor, b".")
