"""Tables and sentences, each reader's way: in colour on a terminal, plain in a pipe and in the log.

:func:`show` logs rich's tables as plain text, which is what a file keeps. The text's parts travel
with it, and :class:`Screen`, the handler for standard output, draws them anew where a terminal
takes colour; ``NO_COLOR`` is respected. Nothing is wider than the terminal.
"""

import logging
from collections.abc import Sequence
from io import StringIO

from rich.console import Console, RenderableType
from rich.text import Text

from lora_mnist.show.verdict import Phrase

#: Columns where there is no terminal.
WIDTH = 100

STYLES = {"good": "green", "bad": "red", "plain": "", "advice": "bold"}


def show(log: logging.Logger, *parts: RenderableType, width: int = WIDTH) -> None:
    """Log tables and texts as one message; what stands in a string is no markup.

    Args:
        log: of the module that has something to show.
        parts: go below each other.
        width: columns where there is no terminal.
    """
    if log.isEnabledFor(logging.INFO):
        log.info("%s", rendered(parts, width), extra={"parts": parts})


def rendered(parts: Sequence[RenderableType], width: int = WIDTH) -> str:
    """The parts below each other as plain text, ``width`` columns wide at most."""
    text = StringIO()
    console = Console(
        file=text,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=None,
        force_jupyter=False,
    )
    _print(console, parts)
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    return "\n".join(lines).rstrip()


def sentence(phrases: Sequence[Phrase]) -> Text:
    """A verdict in colour: what is better green, what is worse red, and no word by colour alone."""
    parts = [(phrase.text, STYLES[phrase.mood]) for phrase in phrases]
    return Text(" ").join(Text(text, style) for text, style in parts)


class Screen(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler for standard output: draws what :func:`show` logged for the terminal that it is."""

    def emit(self, record: logging.LogRecord) -> None:
        """Draw the record's parts in the terminal's width and colours; elsewhere print its text."""
        parts = getattr(record, "parts", None)
        # A stream that is closed is no terminal.
        if parts is None or self.stream.closed or not self.stream.isatty():
            super().emit(record)
            return
        try:
            console = Console(file=self.stream, markup=False, emoji=False, highlight=False)
            _print(console, parts)
            self.flush()
        except Exception:
            self.handleError(record)


def _print(console: Console, parts: Sequence[RenderableType]) -> None:
    for part in parts:
        console.print(part)
