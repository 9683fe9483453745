"""Shows the progress of long loops."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Between two lines of the log, where there is no bar.
SECONDS_BETWEEN_LINES = 30


def progress(items: Iterable[_T], name: str, total: int) -> Iterator[_T]:
    """Yield ``items``, ``total`` in all, and show the progress in a bar or in lines of the log."""
    if sys.stderr.isatty():
        is_silent = not log.isEnabledFor(logging.WARNING)  # true in all processes but the first
        yield from tqdm(items, name, total, leave=False, delay=3, disable=is_silent)
        return
    last_line_at = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last_line_at > SECONDS_BETWEEN_LINES:
            last_line_at = time.monotonic()
            log.info("%s: %d of %d", name, number, total)
        yield item
