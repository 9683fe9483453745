"""How the C library hands out memory to a run."""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next request instead of giving it back to the system.

    A layer's output for a thousand images takes megabytes. Given back and asked for again with
    every batch, they arrive as new pages that the kernel has to clear: a fifth of the time of a
    test. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no CDLL(None)
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # bytes; the largest that glibc accepts
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
