"""Writes files whole or not at all."""

import csv
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds."""
    # The suffix stays the last part: some writers append one of their own where it is missing.
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(8)}.tmp{path.suffix}")
    with make_folder(path.parent):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def make_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` for the ``with`` block; afterwards, remove the new folders that are empty."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with suppress(OSError):  # it is not empty
                each.rmdir()


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, {} if there is none. Raise ValueError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object ({error})") from error


def flatten(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.b": 1, "a.c.0": 2, "a.c.1": 3}`` for ``{"a": {"b": 1, "c": [2, 3]}}``."""
    if not isinstance(nested, dict | list):
        return {prefix: nested}
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def write_csv(path: Path, titles: Iterable[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write rows to a CSV file as they come; text that looks like a formula is escaped.

    Until the last row the file's name ends in ``.part``, also after a kill. The number of
    rows is returned.
    """
    part = path.with_name(f"{path.name}.part")
    # A picture's file may be named in Latin-1. A line is on its way to the disk when it ends.
    how: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    count = 0
    with make_folder(path.parent), part.open("w", 1, **how) as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        for row in rows:
            count += 1
            writer.writerow([f"'{cell}" if _is_formula(cell) else cell for cell in row])
        os.fsync(file.fileno())
    part.replace(path)  # closed: Windows moves no open file
    return count


def _is_formula(cell: Any) -> bool:
    """Return whether a spreadsheet would compute a text, which may be a stranger's file name."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@")):
        return False
    try:
        float(cell)  # -1 is a number
    except ValueError:
        return True
    return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, a line a key, whole or not at all."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
