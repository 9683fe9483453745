"""What was tried and what was lost: a row of a table, and a line on the way."""

import sys
from typing import NamedTuple


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        what: was tried.
        tried: how often.
        lost: how often a promise was broken.
    """

    what: str
    tried: int
    lost: int


def tell(line: str) -> None:
    """Say something on the way, on standard error; the table is for standard output."""
    print(line, file=sys.stderr, flush=True)


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = ["| what was tried | tried | survived | lost |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {r.what} | {r.tried:,} | {r.tried - r.lost:,} | {r.lost:,} |" for r in rows]
    return "\n".join(lines)
