"""The pictures and tables of README and docs, made again from real runs.

    python scripts/readme.py                      # runs everything: two or three minutes
    python scripts/readme.py --only lora sweep    # some blocks alone
    python scripts/readme.py --only torture=FILE  # from what another script printed, here in FILE

A block stands between markers such as ``<!-- lora: made by scripts/readme.py, ... -->``; nothing
else in a document changes. The commands are those that the documents print. ``--runs FOLDER`` keeps
the runs, and takes those that it holds; else they are thrown away. The picture of the page needs
Chromium and the extra ``dev``.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from documents.markers import fill
from documents.runs import Runs
from documents.tables import (
    fenced,
    from_line,
    lines_that_begin,
    markdown_table,
    repair_rows,
    speed_rows,
    terminal_table,
)

from lora_mnist.cli import run
from lora_mnist.errors import UserError
from lora_mnist.project import PROJECT


class Made(NamedTuple):
    """A block that this script makes.

    Attributes:
        document: the document, from the project's folder.
        make: from the runs and the documents' folder to the block's text; pictures go to docs/.
    """

    document: str
    make: Callable[[Runs, Path], str]


class Printed(NamedTuple):
    """A block that another script's output fills.

    Attributes:
        document: the document, from the project's folder.
        make: from that output to the block's text.
    """

    document: str
    make: Callable[[str], str]


def before_after(runs: Runs, into: Path) -> str:
    """Both repairs as a picture."""
    from documents.before_after import draw_before_after

    folders = {
        "naive: only nines": runs.run_folder("nines"),
        "experiment=repair: nines and others": runs.run_folder("repair"),
    }
    draw_before_after(folders, into / "docs" / "before_after.png")
    says = "Errors of each digit before and after, and some repaired and broken images, two ways"
    return f"![{says}](docs/before_after.png)"


def lora(runs: Runs, into: Path) -> str:
    """What the first command line ends with."""
    return f"{fenced(from_line(runs.printed('nines'), 'parameters:'))}\n\n{machine()}"


def machine() -> str:
    """What decides the last digits."""
    threads = torch.get_num_threads()
    return f"(torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''})"


def demo(runs: Runs, into: Path) -> str:
    """The page to draw on as a picture."""
    from documents.screenshot import photograph

    adapter, path = runs.run_folder("nines"), into / "docs" / "demo.png"
    photograph(adapter, runs.outputs, runs.settings, path)
    says = "The page of demo.py: a nine that the base gets wrong and the adapted network right"
    return f"![{says}](docs/demo.png)"


def repair(runs: Runs, into: Path) -> str:
    """The methods in short."""
    return repair_rows(into / "docs" / "repair.md")


def sweep(runs: Runs, into: Path) -> str:
    """The sweep's table and its picture."""
    table = from_line(runs.printed("sweep"), "┏").partition("\nsweep: ")[0]
    copyfile(runs.run_folder("sweep") / "summary.png", into / "docs" / "sweep.png")
    return f"{fenced(table)}\n\n![Validation accuracy over rank and alpha](sweep.png)"


MADE = {
    "before_after": Made("README.md", before_after),
    "lora": Made("README.md", lora),
    "demo": Made("README.md", demo),
    "repair": Made("README.md", repair),
    "sweep": Made("docs/sweeps.md", sweep),
}
PRINTED = {
    "torture": Printed("README.md", markdown_table),
    "speed": Printed("README.md", speed_rows),
    "benchmark": Printed("docs/speed.md", markdown_table),
    "packed": Printed("docs/speed.md", markdown_table),
    "summaries": Printed("docs/sweeps.md", markdown_table),
    "notebook": Printed("docs/notebook.md", markdown_table),
    "elsewhere": Printed("docs/notebook.md", markdown_table),
    "tour": Printed("docs/adapters.md", partial(lines_that_begin, start="ok")),
    "several": Printed("docs/adapters.md", partial(terminal_table, head="errors with")),
}


def write(name: str, runs: Runs, into: Path) -> None:
    """Make a block, ``NAME`` or ``NAME=FILE``, and put it into its document in ``into``."""
    name, _, file = name.partition("=")
    try:
        if name in MADE and not file:
            document, body = MADE[name].document, MADE[name].make(runs, into)
        elif name in PRINTED and file:
            document, body = PRINTED[name].document, PRINTED[name].make(Path(file).read_text())
        else:
            known = ", ".join([*MADE, *(f"{other}=FILE" for other in PRINTED)])
            raise UserError(f"--only={name}: expected one of {known}")
        fill(into / document, name, body)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"--only={name}: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MADE), metavar="NAME[=FILE]")
    parser.add_argument("--runs", type=Path, help="folder for the runs; default: a temporary one")
    parser.add_argument("--into", type=Path, default=PROJECT, help="where the documents are")
    parser.add_argument("--set", nargs="+", default=[], help="overrides of all runs, to try it")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        runs = Runs(arguments.runs or Path(folder), arguments.set)
        for name in arguments.only:
            write(name, runs, arguments.into)
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
