"""Files that are written whole or not at all, and what is left of writers that died."""

import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: ``.NAME.HOST-PROCESS-CHANCE.tmp.SUFFIX``
_TEMPORARY = re.compile(r"\..*\.(\w*)-(\d+)-[0-9a-f]{8}\.tmp(\.[^.]*)?")
#: Whether a process of another machine still runs nobody here can tell; after a day it is done.
_LONGEST_WRITE = 24 * 60 * 60
#: What is written here is nested five deep.
_DEEPEST_JSON = 50


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write ``path`` so that it is either the complete new file or what it was before.

    Yields the path of a temporary file in the same folder. When the block ends it is flushed to
    disk and renamed to ``path``; when the block raises, it is deleted. Temporary files in the
    folder whose process died are deleted too.

    Raises:
        OSError: if the folder cannot be made or written; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_up(path.parent)
    temporary = path.with_name(_temporary_name(path.stem, path.suffix))
    try:
        temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
        publish(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def publish(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to disk and rename it to ``path``, replacing what was there."""
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    # Temporary files are private to their owner; a published one has the rights any new file has.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    temporary.replace(path)


def sweep_up(folder: Path) -> None:
    """Delete the temporary files in ``folder`` of which the process is gone."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == "." and (match := _TEMPORARY.fullmatch(entry.name)):
                with suppress(OSError):
                    if _is_abandoned(entry, host=match[1], process=int(match[2])):
                        Path(entry.path).unlink()


def _temporary_name(name: str, suffix: str) -> str:
    """The suffix stays the last part: some writers append one of their own where it is missing."""
    return f".{name[:100]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"


def _host() -> str:
    """Where a process's number is its own: a machine, or a container on it."""
    name = re.sub(r"\W", "", socket.gethostname())[:50]
    with suppress(OSError):  # Linux alone has it
        name += f"_{Path('/proc/self/ns/pid').stat().st_ino}"
    return name


def _is_abandoned(entry: os.DirEntry[str], host: str, process: int) -> bool:
    if host != _host() or sys.platform == "win32":
        return entry.stat(follow_symlinks=False).st_mtime < time.time() - _LONGEST_WRITE
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's
        pass
    return False


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """What a file holds, whoever wrote it.

    Raises:
        ValueError: if it is no file, or has more than ``most_bytes``.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe could keep us waiting
        raise ValueError("a folder, a pipe or a device")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes:,} bytes")
    return content


def read_json(path: Path, most_bytes: int) -> Any:
    """What a JSON file holds, whoever wrote it.

    Raises:
        ValueError: if it is no file or no JSON, has more than ``most_bytes``, or is nested so deep
            that those who read it would run out of stack.
        OSError: if it cannot be read.
    """
    text = read_bounded(path, most_bytes)
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [content]
    for _ in range(_DEEPEST_JSON):
        nested = [x for x in level if isinstance(x, dict | list)]
        if not nested:
            return content
        level = [inner for x in nested for inner in (x.values() if isinstance(x, dict) else x)]
    raise ValueError("nested too deep")
