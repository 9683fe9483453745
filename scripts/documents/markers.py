"""Blocks of a document that are made, not typed: found, filled, and checked for later edits.

A block stands between ``<!-- NAME: made by SCRIPT, SUM -->`` and ``<!-- /NAME -->``. The sum is of
its text and of the pictures that it links to, so that a number changed by hand does not go
unnoticed.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from lora_mnist.disk.files import atomic_write

_BLOCK = re.compile(
    r"^<!-- (?P<name>\w+): made by (?P<by>[^\n]+), (?P<sum>[0-9a-f]{12}) -->\n"
    r"(?P<body>.*?)\n<!-- /(?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
PICTURE = re.compile(r"!\[[^]]*\]\((?P<path>[^)]+)\)")


class Block(NamedTuple):
    """What a document has between two markers.

    Attributes:
        name: of the block.
        by: the script that makes it.
        checksum: as it was when the block was made.
        body: the text between.
    """

    name: str
    by: str
    checksum: str
    body: str


def blocks(document: Path) -> dict[str, Block]:
    """The blocks of a document, by name."""
    found = [Block(*match.groups()) for match in _BLOCK.finditer(document.read_text())]
    return {block.name: block for block in found}


def checksum(body: str, folder: Path) -> str:
    """Of a block's text and the pictures that it links to, from ``folder``.

    Raises:
        OSError: if a picture cannot be read.
    """
    total = hashlib.sha256(body.encode())
    for picture in PICTURE.finditer(body):
        total.update((folder / picture["path"]).read_bytes())
    return total.hexdigest()[:12]


def fill(document: Path, name: str, body: str) -> None:
    """Put ``body`` between the markers ``name`` of a document; nothing else in it changes.

    Raises:
        ValueError: if the document has no such block.
        OSError: if a file cannot be read or written.
    """
    text = document.read_text()
    match = next((m for m in _BLOCK.finditer(text) if m["name"] == name), None)
    if match is None:
        raise ValueError(f"{document}: expected a block <!-- {name}: made by ... -->")
    head = f"<!-- {name}: made by {match['by']}, {checksum(body, document.parent)} -->"
    made = f"{head}\n{body}\n<!-- /{name} -->"
    with atomic_write(document) as path:
        path.write_text(text[: match.start()] + made + text[match.end() :])


def without_blocks(text: str) -> str:
    """A document's text as people typed it."""
    return _BLOCK.sub("", text)
