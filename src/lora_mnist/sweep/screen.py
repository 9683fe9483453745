"""The screen, which may be gone before the sweep is."""

import os
import shutil
import sys

#: Columns of a table where there is no terminal to fit.
_WIDE = 200


def columns_of_screen() -> int:
    """How wide a table may be: as the terminal, or wide where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE


def say(text: str, to_stderr: bool = False) -> None:
    """Print at once. A reader that has left, as in ``| head``, ends neither a job nor the sweep."""
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
