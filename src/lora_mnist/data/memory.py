"""How much memory is free for images."""

import os
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process could still take without swapping; ``None`` where nobody says.

    A container's limit counts. What files occupy as a cache is free, since the system gives it up.
    """
    known = [free for free in (_of_the_machine(), _of_the_container()) if free is not None]
    return min(known, default=None)


def _of_the_machine() -> int | None:
    try:
        with Path("/proc/meminfo").open() as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:  # macOS: all there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _of_the_container() -> int | None:
    for limit, field in (("memory.max", "anon"), ("memory/memory.limit_in_bytes", "total_rss")):
        try:
            most = int((_GROUP / limit).read_text())  # "max" where there is no limit
            state = (_GROUP / limit).with_name("memory.stat").read_text()
            fields = dict(line.split() for line in state.splitlines())
            return max(0, most - int(fields[field]))
        except (OSError, KeyError, ValueError):
            continue
    return None
