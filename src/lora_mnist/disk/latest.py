"""What ``latest`` means, in every command: the newest by time, whatever its folder is called."""

from pathlib import Path


def latest(folder: Path, pattern: str) -> Path | None:
    """The file in ``folder`` that matches ``pattern`` and was written last, if there is one."""
    paths = folder.glob(pattern)
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
