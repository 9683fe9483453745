"""Blocks from what other scripts measured and printed: the lines of it that a document shows."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

#: Rows of scripts/benchmark/run.py: what they are called here, and beside whom ours stands.
SPEED = {
    "pretrain, Trainer": ("`stage=pretrain`", "notebook"),
    "LoRA rank 1, Trainer": ("`stage=lora`", "notebook"),
    "LoRA rank 1, bare loop, batches of 10": ("LoRA in a bare loop", "PEFT"),
}
#: Rows of the table `test` in docs/repair.md.
REPAIR = (
    *("naive (notebook)", "going on with hardness 0.5", "repair_private", "repair"),
    *("repair at rank 4", "full fine-tuning"),
)
#: And its columns.
REPAIR_COLUMNS = ("method", "on the class: mean, worst", "of all: mean, worst", "trained weights")


def fenced(text: str) -> str:
    """Text as it is on a terminal."""
    return f"```text\n{text}\n```"


def from_line(text: str, start: str) -> str:
    """The lines of ``text`` from the last one on that begins with ``start``.

    Raises:
        ValueError: if none does.
    """
    lines = text.rstrip().splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(start)]
    if not places:
        raise ValueError(f"expected a line {start}..., found:\n{text}")
    return "\n".join(lines[places[-1] :])


def lines_that_begin(text: str, start: str) -> str:
    """The lines of ``text`` that begin with ``start``, as on a terminal."""
    return fenced("\n".join(line for line in text.splitlines() if line.startswith(start)))


def terminal_table(text: str, head: str) -> str:
    """The table on a terminal whose head begins with ``head``.

    Raises:
        ValueError: if there is none.
    """
    before, found, after = text.partition(f"┃ {head} ")
    if not found:
        raise ValueError(f"expected a table ┃ {head}, found none")
    body, end, rest = after.partition("\n└")
    return fenced(f"{before.splitlines()[-1]}\n{found}{body}{end}{rest.splitlines()[0]}")


def markdown_table(text: str) -> str:
    """The first Markdown table of ``text``.

    Raises:
        ValueError: if there is none.
    """
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("|")), len(lines))
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    if start == end:
        raise ValueError("expected a Markdown table, found none")
    return "\n".join(lines[start:end])


def rows_of(table: str, names: Sequence[str]) -> str:
    """The head of a Markdown table, and the rows that begin with ``names``, in their order.

    Raises:
        ValueError: if a row is missing.
    """
    head, rule, *rows = table.splitlines()
    by_name = {row.split("|")[1].strip(): row for row in rows}
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"no row {missing[0]}; expected one of {', '.join(by_name)}")
    return "\n".join([head, rule, *(by_name[name] for name in names)])


def columns_of(table: str, titles: Sequence[str]) -> str:
    """The columns of a Markdown table with these titles.

    Raises:
        ValueError: if a title is missing.
    """
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    places = [rows[0].index(title) for title in titles]
    return "\n".join(f"| {' | '.join(row[place] for place in places)} |" for row in rows)


def repair_rows(page: Path) -> str:
    """A few methods of docs/repair.md, with some of the columns of its table."""
    _, _, rest = page.read_text().partition("<!-- test")
    return columns_of(rows_of(markdown_table(rest), REPAIR), REPAIR_COLUMNS)


def speed_rows(record: str) -> str:
    """A few rows of what scripts/benchmark/run.py keeps in benchmark.json.

    Raises:
        ValueError: if the record has not all of them.
    """
    kept = json.loads(record)
    lines = [
        "| training | beside | there | here | times as fast |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, (title, other) in SPEED.items():
        row = kept["rows"].get(name)
        if row is None:
            raise ValueError(f"no row {name}; expected a whole run of scripts/benchmark/run.py")
        theirs, ours = row["measured"][other], row["measured"]["ours"]
        pairs = list(zip(ours, theirs, strict=True))
        ratio = statistics.median(b / a if row["unit"] == "s" else a / b for a, b in pairs)
        cells = [f"{statistics.median(values):,.3g} {row['unit']}" for values in (theirs, ours)]
        lines.append(f"| {title} | {other} | {' | '.join(cells)} | {ratio:.1f} |")
    return "\n".join([*lines, "", f"Medians; {kept['machine']}."])
