"""Files that are written whole or not at all."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds after which nobody is still writing a temporary file.
_LONGEST_WRITE = 24 * 60 * 60


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write ``path`` so that it is either the complete new file or what it was before.

    Yields the path of a temporary file in the same folder. When the block ends it is flushed to
    disk and renamed to ``path``; when the block raises, it is deleted. A process that is killed
    leaves it behind; the next writer in the folder deletes it when it is a day old.

    Raises:
        OSError: if the folder cannot be made or written; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.tmp*"):
        with suppress(OSError):  # somebody else's, or deleted by another writer
            if left.stat().st_mtime < time.time() - _LONGEST_WRITE:
                left.unlink()
    # The suffix stays the last part: some writers append one of their own where it is missing.
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(8)}.tmp{path.suffix}")
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
