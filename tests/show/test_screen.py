import logging
from io import StringIO

import pytest
from composed import logged
from rich.table import Table

from lora_mnist.show.screen import Screen, rendered, sentence, show
from lora_mnist.show.verdict import Phrase

SAID = [Phrase("better,", "good"), Phrase("worse:", "bad"), Phrase("[b]do this[/b]", "advice")]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: StringIO, *parts: object) -> str:
    log = logging.getLogger("test_screen")
    log.propagate = False
    handler = Screen(stream)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    show(log, *parts)
    log.removeHandler(handler)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_gets_colours() -> None:
    assert told(Terminal(), sentence(SAID)) == (
        "\x1b[32mbetter,\x1b[0m \x1b[31mworse:\x1b[0m \x1b[1m[b]do this[/b]\x1b[0m\n"
    )


def test_unless_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = told(Terminal(), sentence(SAID[:2]))
    assert text == "better, worse:\n"


def test_a_pipe_and_the_log_get_plain_text() -> None:
    expected = "better, worse: [b]do this[/b]"
    assert told(StringIO(), sentence(SAID)) == f"{expected}\n"
    with logged("test_screen") as text:
        show(logging.getLogger("test_screen"), sentence(SAID))
    assert text.getvalue() == f"{expected}\n"


def test_nothing_is_wider_than_the_terminal() -> None:
    table = Table("a name", *"abcdefghij")
    table.add_row("n" * 60, *["12345"] * 10)
    assert max(map(len, told(Terminal(), table).splitlines())) <= 80 + len("\x1b[1m\x1b[0m") * 40
    assert max(map(len, rendered([table], width=80).splitlines())) <= 80


def test_messages_without_parts_pass() -> None:
    log = logging.getLogger("test_screen_plain")
    stream = Terminal()
    handler = Screen(stream)
    log.addHandler(handler)
    log.propagate = False
    log.warning("run: %s", "/here")
    log.removeHandler(handler)
    assert stream.getvalue() == "run: /here\n"
