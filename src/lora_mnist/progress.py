"""How far a loop of ours is that takes its time, and how long the parts of a run took."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

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
        disable=os.environ.get("LOCAL_RANK", "0") != "0",
    )


@dataclass
class Clock:
    """Seconds since the run began, and of its measured parts."""

    started: float = field(default_factory=time.perf_counter)
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Around one part of the run; what is measured again is added."""
        started = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and in total, to the millisecond."""
        parts = {**self.parts, "total": time.perf_counter() - self.started}
        return {part: round(seconds, 3) for part, seconds in parts.items()}
