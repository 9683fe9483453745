"""The tables and pictures of README and docs, made again from real runs.

    python scripts/readme.py                         # runs everything: some three minutes
    python scripts/readme.py --only lora sweep       # some blocks alone
    python scripts/readme.py --only kills=FILE       # from what another script printed, in FILE
    python scripts/readme.py --check                 # has anybody changed a block by hand?

A block stands between ``<!-- NAME: made by SCRIPT, SUM -->`` and ``<!-- /NAME -->``; nothing else
in a document changes. The sum is of the block's text and of the pictures that it links to. The
commands are those that the documents print. ``--runs FOLDER`` keeps the runs, and takes those that
it holds; else they are thrown away. The picture of the page needs Chromium and playwright.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import torch
from readme_pictures import draw_before_after, photograph

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import one_line

PROJECT = Path(__file__).resolve().parents[1]
#: As the documents print them. Folders are named here, so that printed paths stay the same.
COMMANDS = {
    "pretrain": ["stage=pretrain"],
    "nines": ["stage=lora", "digit=9", "trainer.max_steps=100"],
    "repair": ["experiment=repair", "digit=9"],
    "sweep": ["-m", "stage=lora", "digit=9", "lora.rank=1,2,4,8", "lora.alpha=1,4,8"],
}
BLOCK = re.compile(
    r"^<!-- (?P<name>\w+): made by (?P<by>[^\n]+), (?P<sum>[0-9a-f]{12}) -->\n"
    r"(?P<body>.*?)\n<!-- /(?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]+)\)")


# --- blocks ---------------------------------------------------------------------------------------


def checksum(body: str, folder: Path) -> str:
    """Of a block's text and the pictures that it links to, from the document's ``folder``."""
    total = hashlib.sha256(body.encode())
    for picture in PICTURE.findall(body):
        total.update((folder / picture).read_bytes())
    return total.hexdigest()[:12]


def fill(document: Path, name: str, body: str) -> None:
    """Put ``body`` between the markers ``name`` of a document.

    Raises:
        ValueError: if the document has no such block.
    """
    text = document.read_text()
    for block in BLOCK.finditer(text):
        if block["name"] == name:
            head = f"<!-- {name}: made by {block['by']}, {checksum(body, document.parent)} -->"
            made = f"{head}\n{body}\n<!-- /{name} -->"
            with atomic_write(document) as path:
                path.write_text(text[: block.start()] + made + text[block.end() :])
            return
    raise ValueError(f"{document}: expected a block <!-- {name}: made by ... -->")


def changed_by_hand(document: Path) -> list[str]:
    """The blocks of a document that are not as a script made them."""
    return [
        block["name"]
        for block in BLOCK.finditer(document.read_text())
        if checksum(block["body"], document.parent) != block["sum"]
    ]


# --- text -----------------------------------------------------------------------------------------


def fenced(text: str) -> str:
    """Text as it is on a terminal."""
    return f"```text\n{text}\n```"


def from_line(text: str, start: str) -> str:
    """The lines of ``text`` from the last one on that begins with ``start``.

    Raises:
        ValueError: if none does.
    """
    lines = text.rstrip().splitlines()
    for number in reversed(range(len(lines))):
        if lines[number].startswith(start):
            return "\n".join(lines[number:])
    raise ValueError(f"expected a line {start}..., found:\n{text}")


def lines_that_begin(text: str, start: str | tuple[str, ...]) -> str:
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


def markdown_table(text: str, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """The first Markdown table of ``text``, and the line after it, which says on what machine.

    Args:
        text: with the table.
        rows: first cells of the rows to take, in their order; empty: all.
        columns: heads of the columns to take; empty: all.

    Raises:
        ValueError: if there is no table, or no such row or column.
    """
    found = re.search(r"^(\|.*\n?)+", text, re.MULTILINE)
    if not found:
        raise ValueError("expected a Markdown table, found none")
    table = [[c.strip() for c in line.strip("|").split("|")] for line in found[0].splitlines()]
    by_name = {row[0]: row for row in table[2:]}
    chosen = rows or list(by_name)
    heads = columns or table[0]
    for names, known in ((chosen, by_name), (heads, table[0])):
        if missing := [each for each in names if each not in known]:
            raise ValueError(f"no {missing[0]} in the table; expected one of {', '.join(known)}")
    places = [table[0].index(head) for head in heads]
    taken = [*table[:2], *(by_name[name] for name in chosen)] if rows else table
    lines = [f"| {' | '.join(row[place] for place in places)} |" for row in taken]
    machine = text[found.end() :].strip().splitlines()[:1]
    return "\n".join([*lines, *(["", *machine] if machine and not rows else [])])


# --- what the blocks hold -------------------------------------------------------------------------


class Runs:
    """Runs in ``folder``; those that it holds from an earlier call are not run again.

    Args:
        folder: where they go; what they print names neither it nor the project's folder.
        settings: overrides of all, to try the script on something small.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder.absolute()
        self.outputs = self.folder / "outputs"
        self.settings = list(settings)

    def run_folder(self, name: str) -> Path:
        """The folder that a command leaves."""
        self.printed(name)
        return self._place(name)

    def printed(self, name: str) -> str:
        """What a command prints.

        Raises:
            RuntimeError: if it fails.
        """
        kept = self.folder / f"{name}.txt"
        if kept.exists():
            return kept.read_text()
        if name != "pretrain":
            self.printed("pretrain")
        mode = "sweep" if "-m" in COMMANDS[name] else "run"
        folders = [f"paths.outputs={self.outputs}", f"hydra.{mode}.dir={self._place(name)}"]
        command = [*COMMANDS[name], *self.settings, *folders]
        print(f"python train.py {' '.join(command)}", file=sys.stderr, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(PROJECT / "train.py"), *command],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"python train.py {' '.join(command)}\n{done.stdout}")
        text = done.stdout
        for ours in (f" paths.outputs={self.outputs}", f"{self.folder}/", f"{PROJECT}/"):
            text = text.replace(ours, "")
        kept.write_text(text)
        return text

    def _place(self, name: str) -> Path:
        stage = {"pretrain": "pretrain", "sweep": "multirun"}.get(name, "lora")
        return self.outputs / stage / name


def before_after(runs: Runs, into: Path) -> str:
    """Both repairs as a picture."""
    folders = {
        "naive: only nines": runs.run_folder("nines"),
        "experiment=repair: nines and others": runs.run_folder("repair"),
    }
    draw_before_after(folders, into / "docs" / "before_after.png")
    says = "Errors of each digit before and after, and some repaired and broken images, two ways"
    return f"![{says}](docs/before_after.png)"


def lora(runs: Runs, into: Path) -> str:
    """What the first command line ends with."""
    threads = torch.get_num_threads()
    machine = f"(torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''})"
    return f"{fenced(from_line(runs.printed('nines'), 'parameters:'))}\n\n{machine}"


def verdict(runs: Runs, into: Path) -> str:
    """The same without its table."""
    text = runs.printed("nines")
    starts = ("parameters:", "base unchanged:", "repaired:")
    lines = [line for line in text.splitlines() if line.startswith(starts)]
    end = from_line(text, "accuracy:").partition("\nreport:")[0]
    return fenced("\n".join([*lines, end]))


def demo(runs: Runs, into: Path) -> str:
    """The page to draw on as a picture."""
    # Validation images advise 0, where nothing is repaired.
    given = [f"adapter={runs.run_folder('nines')}", f"paths.outputs={runs.outputs}", "scale=1"]
    photograph([*given, *runs.settings], into / "docs" / "demo.png")
    says = "The page of demo.py: a nine that the base gets wrong and the adapted network right"
    return f"![{says}](demo.png)"


def repair(runs: Runs, into: Path) -> str:
    """A few methods of docs/repair.md, with some of the columns of its table."""
    rows = ["naive (notebook)", "going on with hardness 0.5", "repair_private", "repair"]
    columns = ["method", "on the class: mean, worst", "of all: mean, worst"]
    _, _, page = (into / "docs" / "repair.md").read_text().partition("<!-- test")
    return markdown_table(page, rows, columns)


def sweep(runs: Runs, into: Path) -> str:
    """The sweep's table and its picture."""
    table = from_line(runs.printed("sweep"), "┏").partition("\nsweep: ")[0]
    copyfile(runs.run_folder("sweep") / "summary.png", into / "docs" / "sweep.png")
    return f"{fenced(table)}\n\n![Validation accuracy over rank and alpha](sweep.png)"


#: From the runs and the documents' folder to a block's text, by the document.
MADE: dict[str, tuple[str, Callable[[Runs, Path], str]]] = {
    "before_after": ("README.md", before_after),
    "verdict": ("README.md", verdict),
    "lora": ("docs/runs.md", lora),
    "demo": ("docs/adapters.md", demo),
    "repair": ("README.md", repair),
    "sweep": ("docs/sweeps.md", sweep),
}
#: From what another script printed to a block's text.
PRINTED: dict[str, tuple[str, Callable[[str], str]]] = {
    "kills": ("docs/questions.md", markdown_table),
    "benchmark": ("docs/speed.md", markdown_table),
    "notebook": ("docs/notebook.md", markdown_table),
    "elsewhere": ("docs/notebook.md", markdown_table),
    "tour": ("docs/adapters.md", partial(lines_that_begin, start=("ok", "note"))),
    "several": ("docs/adapters.md", partial(terminal_table, head="errors with")),
}


def write(name: str, runs: Runs, into: Path) -> None:
    """Make a block, ``NAME`` or ``NAME=FILE``, and put it into its document in ``into``.

    Raises:
        ValueError: if there is no such block, or what it is made from is not as expected.
    """
    name, _, file = name.partition("=")
    if name in MADE and not file:
        document, make = MADE[name]
        body = make(runs, into)
    elif name in PRINTED and file:
        document, read = PRINTED[name]
        body = read(Path(file).read_text())
    else:
        known = ", ".join([*MADE, *(f"{other}=FILE" for other in PRINTED)])
        raise ValueError(f"--only={name}: expected one of {known}")
    fill(into / document, name, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MADE), metavar="NAME[=FILE]")
    parser.add_argument("--check", action="store_true", help="make nothing: compare the sums")
    parser.add_argument("--runs", type=Path, help="folder for the runs; default: a temporary one")
    parser.add_argument("--into", type=Path, default=PROJECT, help="where the documents are")
    parser.add_argument("--set", nargs="+", default=[], help="overrides of all runs, to try it")
    arguments = parser.parse_args()
    if arguments.check:
        documents = sorted({document for document, _ in (*MADE.values(), *PRINTED.values())})
        changed = {d: names for d in documents if (names := changed_by_hand(arguments.into / d))}
        if changed:
            raise SystemExit(f"changed by hand: {changed}")
        return
    with TemporaryDirectory() as folder:
        runs = Runs(arguments.runs or Path(folder), arguments.set)
        for name in arguments.only:
            try:
                write(name, runs, arguments.into)
            except (ValueError, OSError) as error:
                raise SystemExit(one_line(error)) from error
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
