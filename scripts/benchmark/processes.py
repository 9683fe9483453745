"""The processes of the benchmark: one for each side, and one for each whole command.

What a side asks of the C library's allocator, of torch and of Python helps nobody else, since each
side works in a process of its own.
"""

import gc
import logging
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from lora_mnist.process import keep_freed_memory
from lora_mnist.project import PROJECT

Contestant = Callable[[], float]


class Side:
    """A process that measures for one side.

    Args:
        start: what the side does first in its process.
        fresh: whether every measurement has a new process.
    """

    def __init__(self, start: Callable[[], Any] = int, fresh: bool = False) -> None:
        self._start = start
        self._process = None if fresh else self._new_process()

    def __call__(self, work: Callable[..., float], *arguments: Any) -> Contestant:
        """A contestant: it returns what ``work(*arguments)`` returns in the side's process."""
        return lambda: self._measure(work, *arguments)

    def _measure(self, work: Callable[..., float], *arguments: Any) -> float:
        if self._process:
            return self._process.submit(work, *arguments).result()
        with self._new_process() as process:
            return process.submit(work, *arguments).result()

    def stop(self) -> None:
        """End the side's process."""
        if self._process:
            self._process.shutdown()

    def _new_process(self) -> ProcessPoolExecutor:
        # Each is forked from one that has imported everything and computed nothing.
        context = multiprocessing.get_context("forkserver")
        return ProcessPoolExecutor(1, context, _start_side, (self._start,))


def _start_side(start: Callable[[], Any]) -> None:
    quiet_lightning()
    start()


def quiet_lightning() -> None:
    """Keep Lightning's notices and warnings out of the tables."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


@contextmanager
def all_sides() -> Iterator[dict[str, Side]]:
    """A process for each side of the tables; they end with the context."""
    sides = {
        # Its dense products of several megabytes are twice as fast where an earlier measurement
        # happens to have left a free block at the heap's end, so each has a new heap.
        "notebook": Side(fresh=True),
        "floor": Side(),
        "PEFT": Side(),
        "compiled": Side(),
        "CPU": Side(start=begin_as_a_run),
        "ours": Side(start=begin_as_a_run),
        "as Python starts": Side(start=gc.freeze),
    }
    try:
        yield sides
    finally:
        for side in sides.values():
            side.stop()


def begin_as_a_run() -> None:
    """Do to the process what a run does to its own."""
    keep_freed_memory()
    gc.freeze()  # lasting_imports does so after the imports, which are over here


@contextmanager
def terminal() -> Iterator[None]:
    """Make standard output a terminal, so that progress is shown as users see it, and drop it."""
    master, slave = pty.openpty()

    reader = threading.Thread(target=_read_all, args=[master])
    reader.start()
    outside, sys.stdout = sys.stdout, os.fdopen(slave, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = outside
        reader.join()


def _read_all(master: int) -> bytes:
    """Read what is written to a terminal until it is closed; return the end of it."""
    written = b""
    with suppress(OSError):  # how Linux reports that the terminal was closed
        while chunk := os.read(master, 65_536):
            written = (written + chunk)[-2000:]
    os.close(master)
    return written


def run_process(python: str, *command: str, **environment: str) -> tuple[float, str]:
    """Seconds from start to exit of a Python process on a terminal, and the end of its output."""
    env = os.environ | environment
    master, slave = pty.openpty()
    started = time.perf_counter()
    child = subprocess.Popen([python, *command], cwd=PROJECT, env=env, stdout=slave, stderr=slave)
    os.close(slave)
    printed = _read_all(master).decode(errors="replace")
    if child.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {printed}")
    return time.perf_counter() - started, printed


def peak_memory(python: str, code: str) -> float:
    """The most memory, in MB, that a Python process had while it ran ``code``."""
    # The kernel's own account of the program: rusage would include the process it was forked from.
    code += "\nprint('VmHWM', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    _, printed = run_process(python, "-c", code)
    return float(printed.rsplit("VmHWM", 1)[1]) / 1024
