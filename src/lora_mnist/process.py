"""What is done to the process for speed; no result depends on it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Around imports that last as long as the process: the garbage collector skips them.

    torch and Lightning make about half a million objects. Searching them for garbage takes nearly
    a second while they are imported, and another when the process ends
    (``scripts/benchmark/run.py --process`` measures both functions of this module).
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else only what may well be garbage would be kept
            gc.freeze()
        if enabled:
            gc.enable()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next request instead of returning it to the system.

    A layer's output for a thousand images takes megabytes. Returned and asked for again with every
    batch, it arrives as new pages that the kernel has to clear: a tenth to a fifth of the time of a
    test. Without glibc nothing happens.
    """
    import ctypes  # late: a command that only prints does without

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no CDLL(None)
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # bytes; the largest that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
