"""What need not be freed, looked through or copied, for speed; no result depends on it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.config_store import ConfigStore

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Around imports that last as long as the process: Python's garbage collector ignores them.

    torch and Lightning make about a million objects. Looking through them for garbage takes half a
    second while they are imported and a whole one when the process ends.
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


def share_registered_configs() -> None:
    """Have Hydra hand its registered configurations around instead of copying them all each time.

    For every config group that ``--help`` lists, Hydra copies its sources, each with the whole
    store of what is registered, five times over: two fifths of the time to the answer. Only the
    list of sources is ever changed in such a copy.
    """
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next request instead of giving it back to the system.

    A layer's output for a thousand images takes megabytes. Given back and asked for again with
    every batch, they arrive as new pages that the kernel has to clear: a fifth of the time of a
    test. Elsewhere than on glibc nothing happens.
    """
    import ctypes  # late: a command that only prints does without

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no CDLL(None)
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # bytes; the largest that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
