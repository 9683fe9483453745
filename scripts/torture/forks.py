"""A command in a forked process: everything is imported once, and thousands of cases follow."""

import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from lora_mnist.project import PROJECT

#: What commands import, some of it late.
_MODULES = (
    *("train", "evaluate", "predict", "export", "report", "demo"),
    *("show.figures", "show.report", "show.sweep_report", "sweep.figure", "side_by_side"),
)
_EXTRAS = ("gradio", "uvicorn", "onnxscript", "onnxruntime", "tensorboard", "rich.table")
#: Bytes that a command may ask for, beside what the parent has.
_MEMORY = 3 << 30
TRACEBACK = "Traceback (most recent call last)"
#: Seconds that a command has to end after an interrupt.
_PATIENCE = 10


@dataclass
class Answer:
    """What a command answered.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        out: what it printed.
        err: what it said on standard error.
        interrupted: whether its time was up and it was asked to end.
        hung: whether it went on nevertheless, and had to be killed.
    """

    code: int
    out: str
    err: str
    interrupted: bool = False
    hung: bool = False


def import_all() -> None:
    """Import in the parent what each command would import on its own."""
    for name in _MODULES:
        import_module(f"lora_mnist.{name}")
    for name in _EXTRAS:
        import_module(name)


class Command:
    """``python ENTRY.py ARGUMENTS``, running in a fork of this process.

    Args:
        entry: train, eval, ...
        arguments: of the command line.
        folder: where the command is started.
        before: called in the fork before the command.
    """

    def __init__(
        self,
        entry: str,
        arguments: list[str],
        folder: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.started = time.monotonic()
        parent = folder.absolute().parent
        self._said = [parent / f".{folder.name}-{self.started}.{name}" for name in ("out", "err")]
        for path in self._said:
            path.touch()
        self.process = os.fork()
        if self.process == 0:
            _become(entry, arguments, folder, self._said, before)

    @property
    def err(self) -> str:
        """What it has said on standard error so far."""
        return self._said[1].read_text(errors="replace")

    def poll(self) -> Answer | None:
        """Its answer, once it has ended."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        if not done:
            return None
        out, err = (path.read_text(errors="replace") for path in self._said)
        for path in self._said:
            path.unlink()
        return Answer(os.waitstatus_to_exitcode(status), out, err)

    def signal(self, number: int) -> None:
        """Send the command, and processes that it has started, a signal."""
        os.killpg(self.process, number)

    def wait(self, limit: float, until: str | None = None) -> Answer:
        """Its answer; after ``limit`` seconds, or once it said ``until``, it is interrupted."""
        interrupted_at, hung, pause = None, False, 0.001
        while (answer := self.poll()) is None:
            time.sleep(pause)
            pause = min(0.02, pause * 2)
            now = time.monotonic()
            if interrupted_at is None:
                if now - self.started > limit or (until and until in self.err):
                    interrupted_at = now
                    os.kill(self.process, signal.SIGINT)
            elif now - interrupted_at > _PATIENCE and not hung:
                hung = True
                self.signal(signal.SIGKILL)
        answer.interrupted, answer.hung = interrupted_at is not None, hung
        return answer


def _become(
    entry: str,
    arguments: list[str],
    folder: Path,
    said: list[Path],
    before: Callable[[], None] | None,
) -> NoReturn:
    """In the fork: be that command, and end with its exit code."""
    code = 70
    try:
        os.setsid()
        for number, path in enumerate(said, start=1):
            os.dup2(os.open(path, os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY,) * 2)
        sys.argv = [str(PROJECT / f"{entry}.py"), *arguments]
        try:
            if before is not None:
                before()
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
