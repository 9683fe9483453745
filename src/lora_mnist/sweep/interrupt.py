"""SIGINT and SIGTERM end a command in order, and its exit code names them: 130 and 143.

Left to itself, Python dies of SIGTERM on the spot, and Lightning turns SIGINT into exit code 1.
Whatever runs when the signal comes may also swallow the exception that it raises, or replace it.
So the signal is remembered, and decides the exit code in the end.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupt:
    """What :func:`handle_signals` has received.

    Attributes:
        number: of the first signal.
        held: whether further signals are only noted.
        deferred: whether the first signal is only noted; see :func:`finish_first`.
        again: sends the signal once more.
        go_on: the command that goes on with what was interrupted.
    """

    number: signal.Signals | None = None
    held: bool = False
    deferred: bool = False
    again: Timer | None = None
    go_on: str | None = None

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal; 0 before any."""
        return 128 + self.number if self.number else 0

    def hold(self) -> None:
        """From now on only note signals: what remains to be done must not be cut off."""
        self.held = True
        self.take_over()

    def take_over(self) -> None:
        """Handle the signals again: an engine may have put others in the place of our handlers."""
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def recognise(self, code: object) -> None:
        """Note a SIGTERM of which only the exit code tells.

        Ray puts a handler of its own in the place of ours, which exits with the signal's number.
        """
        if code == signal.SIGTERM and signal.getsignal(signal.SIGTERM) != self._receive:
            self.number = self.number or signal.SIGTERM

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first = self.number is None
        self.number = self.number or signal.Signals(number)
        if self.held or (self.deferred and is_first):
            return
        if _is_importing(frame):
            # Cut off now, a module would stay half-made that the summary needs, such as matplotlib.
            self._send_again()
            return
        raise KeyboardInterrupt  # at which Lightning also ends the processes that it has started

    def recover(self, kind: type[BaseException]) -> bool:
        """Whether an exception that Python could not raise is our interrupt; if so, raise it later.

        Nothing can be raised from ``__del__``, from the callback of a weak reference, or from
        whatever else runs between two lines of the program: Python prints the exception and
        forgets it. So the signal is sent once more, to arrive where it can end the program.
        """
        if self.number is None or not issubclass(kind, KeyboardInterrupt):
            return False
        if not self.held:
            self._send_again()
        return True

    def _send_again(self) -> None:
        assert self.number is not None
        self.cancel()
        self.again = Timer(0.05, os.kill, (os.getpid(), self.number))
        self.again.daemon = True
        self.again.start()

    def cancel(self) -> None:
        """Send nothing once more."""
        if self.again is not None:
            self.again.cancel()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


#: ``None`` in the workers of a parallel launcher, where no command has been started.
_current: Interrupt | None = None


@contextmanager
def handle_signals() -> Iterator[Interrupt]:
    """Around a whole command: a signal raises ``KeyboardInterrupt`` and is remembered."""
    global _current
    before, hook = _current, sys.unraisablehook
    _current = interrupt = Interrupt()

    def report(unraisable: Any) -> None:
        if not interrupt.recover(unraisable.exc_type):
            hook(unraisable)

    handlers = {number: signal.signal(number, interrupt._receive) for number in _SIGNALS}
    sys.unraisablehook = report
    try:
        yield interrupt
    finally:
        interrupt.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _current = before


def is_handled() -> bool:
    """Whether this process is that of a command, and no worker's."""
    return _current is not None


def check() -> None:
    """Raise ``KeyboardInterrupt`` again where what was running has swallowed it."""
    if _current is not None and _current.number:
        raise KeyboardInterrupt


def is_requested() -> bool:
    """Whether a signal has asked this command to end."""
    return _current is not None and _current.number is not None


@contextmanager
def finish_first() -> Iterator[None]:
    """Around work in steps, which asks :func:`is_requested` after each of them.

    The first signal is only noted, for the work to end in order; a second one ends it at once. A
    signal that comes too late for the work ends the command after it. Where no command has been
    started nothing happens.
    """
    if _current is None:
        yield
        return
    _current.deferred = True
    try:
        yield
    finally:
        _current.deferred = False
    check()


def take_over() -> None:
    """See :meth:`Interrupt.take_over`; without a command nothing happens."""
    if _current is not None:
        _current.take_over()


def offer(command: str | None) -> None:
    """Have an interrupt name ``command``, which goes on with what this command does."""
    if _current is not None:
        _current.go_on = command


def leave_to_parent() -> None:
    """In a worker: Ctrl+C reaches all processes, and the one that conducts them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
