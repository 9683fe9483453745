"""Reads files in several threads, and only once if images are held in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from lora_mnist.data.images import Augment, Reader

_T = TypeVar("_T")
_Result = TypeVar("_Result")
#: Threads that read files, and how many each takes at once: with more threads, and with one file
#: at a time, threads of small pictures wait for each other longer than they read.
_THREADS, _FILES_AT_ONCE = min(4, os.cpu_count() or 1), 8


def map_in_threads(function: Callable[[_T], _Result], items: Sequence[_T]) -> Iterator[_Result]:
    """Yield ``function`` of each item, in order: Pillow lets other threads run while it decodes."""
    tasks = [items[i : i + _FILES_AT_ONCE] for i in range(0, len(items), _FILES_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for results in pool.map(lambda task: list(map(function, task)), tasks):
            yield from results


class ReadOnce:
    """Reads each file when it is first asked for, as ``read`` does, and keeps its image."""

    def __init__(self, read: Reader) -> None:
        self._read, self._images = read, dict[Path, Tensor]()

    def __call__(self, paths: Sequence[Path], augment: Augment | None = None) -> list[Tensor]:
        missing = [path for path in dict.fromkeys(paths) if path not in self._images]
        read = map_in_threads(lambda path: self._read([path], None)[0], missing)
        self._images |= zip(missing, read, strict=True)
        images = [self._images[path] for path in paths]
        return list(map(augment, images)) if augment else images
