"""A cache, in the user's folder of caches, of the digests and sizes of image files."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_mnist.data.pictures import examine
from lora_mnist.files import read_json, write_json

#: A file changed less than so many nanoseconds ago may change again without a new time.
_IN_DOUBT = 2_000_000_000


class DigestCache:
    """The digests and sizes of a folder's pictures, by name, size and times of their files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._sure_before = folder, time.time_ns() - _IN_DOUBT
        self._before, self._now = dict[str, Any](), dict[str, Any]()
        with suppress(OSError, RuntimeError, ValueError):  # no home; damaged: it is made again
            self._before = read_json(self._file)

    @property
    def _file(self) -> Path:
        own = os.environ.get("XDG_CACHE_HOME")
        name = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()[:16]
        return (Path(own) if own else Path.home() / ".cache") / "lora_mnist" / f"{name}.json"

    def describe_file(self, name: str) -> tuple[int, int, int]:
        """Return the digest of a file in the folder, and the height and width of its picture."""
        path = self._folder / name
        about = path.stat()
        # Each write changes the ctime, which no program can set.
        times = (about.st_mtime_ns, about.st_ctime_ns)
        key = f"{name} {about.st_size} {about.st_ino} {times}"
        try:
            digest, height, width = map(int, self._before[key])
        except (KeyError, OverflowError, TypeError, ValueError):  # unknown, or damaged
            digest, height, width = examine(path)
        if max(times) < self._sure_before:
            self._now[key] = [digest, height, width]
        return digest, height, width

    def save(self) -> None:
        """Write the cache."""
        if self._now != self._before:
            with suppress(OSError, RuntimeError):  # without it a command takes longer, no more
                write_json(self._file, self._now)
