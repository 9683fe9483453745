"""How far a loop of ours is that takes its time."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

_T = TypeVar("_T")


def progress(items: Iterable[_T], name: str, total: int) -> Iterator[_T]:
    """Yield ``items``, ``total`` in all; after three seconds the first process shows a bar."""
    yield from tqdm(
        items,
        name,
        total,
        leave=False,
        delay=3,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # in a file each state of it stays
        disable=not log.isEnabledFor(logging.WARNING),  # as in all processes but the first
    )
