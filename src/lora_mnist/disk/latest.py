"""What ``latest`` means, in every command: the newest by time, whatever its folder is called."""

from pathlib import Path


def latest(folder: Path, pattern: str) -> Path | None:
    """The file in ``folder`` that matches ``pattern`` and was written last.

    Args:
        folder: where to look.
        pattern: as in ``Path.glob``, such as ``*/adapter/adapter_config.json``.

    Returns:
        Its path; ``None`` where nothing matches. Of two written at once, the last by name.
    """
    times = {}
    for path in folder.glob(pattern):
        try:
            times[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # cleared away meanwhile
            continue
    return max(times, key=lambda path: (times[path], path), default=None)
