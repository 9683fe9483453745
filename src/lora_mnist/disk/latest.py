"""What ``latest`` means, in every command: the newest by time, whatever its folder is called."""

from collections.abc import Callable
from pathlib import Path


def latest(folder: Path, pattern: str, accept: Callable[[Path], bool] | None = None) -> Path | None:
    """The file in ``folder`` that matches ``pattern`` and was written last.

    Args:
        folder: where to look.
        pattern: as in ``Path.glob``, such as ``*/adapter/adapter_config.json``.
        accept: says whether a file counts; ``None``: all do.

    Returns:
        Its path; ``None`` where nothing matches. Of two written at once, the last by name.
    """
    paths = sorted(folder.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path))
    for path in reversed(paths):
        if accept is None or accept(path):
            return path
    return None
