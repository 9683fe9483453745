"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write ``path`` so that it is either the complete new file or what it was before.

    Yields the path of a temporary file in the same folder. When the block ends it is flushed to
    disk and renamed to ``path``; when the block raises, it is deleted.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process's own name keeps two writers of one path apart; the suffix stays the last part,
    # since some writers append one of their own where it is missing.
    with NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix, delete=False
    ) as handle:
        temporary = Path(handle.name)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
