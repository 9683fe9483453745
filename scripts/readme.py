"""The tables and pictures of README and docs, made again from real runs.

    python scripts/readme.py                         # runs everything: some three minutes
    python scripts/readme.py --only lora sweep       # some blocks alone
    python scripts/readme.py --only kills=FILE       # from what another script printed, in FILE

A block stands between ``<!-- NAME: made by SCRIPT, SUM -->`` and ``<!-- /NAME -->``; nothing else
in a document changes. The sum is of the block's text and of the pictures that it links to, so that
a test finds what was changed by hand. The commands are those that the documents print. ``--runs
FOLDER`` keeps the runs, and takes those that it holds; else they are thrown away. The picture of
the page needs Chromium and playwright.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import torch
from readme_pictures import draw_before_after, photograph

from lora_mnist.disk.files import atomic_write

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


# --- text -----------------------------------------------------------------------------------------


def fenced(text: str) -> str:
    """Text as it is on a terminal."""
    return f"```text\n{text}\n```"


def from_line(text: str, start: str) -> str:
    """The lines of ``text`` from the last one on that begins with ``start``."""
    return text[f"\n{text}".rindex(f"\n{start}") :].rstrip()


def lines_that_begin(text: str, start: str | tuple[str, ...]) -> str:
    """The lines of ``text`` that begin with ``start``."""
    return "\n".join(line for line in text.splitlines() if line.startswith(start))


def terminal_table(text: str, head: str) -> str:
    """The table on a terminal whose head begins with ``head``."""
    start = text.rindex("┏", 0, text.index(f"┃ {head} "))
    return text[start : text.index("┘", start) + 1]


# --- what the blocks hold -------------------------------------------------------------------------


class Runs:
    """Runs in ``folder``; those that it holds from an earlier call are not run again.

    What they print names neither it nor the project's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.outputs = self.folder / "outputs"

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
        command = [*COMMANDS[name], *folders]
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


def before_after(runs: Runs) -> str:
    """Both repairs as a picture."""
    folders = {
        "naive: only nines": runs.run_folder("nines"),
        "experiment=repair: nines and others": runs.run_folder("repair"),
    }
    draw_before_after(folders, PROJECT / "docs" / "before_after.png")
    says = "Errors of each digit before and after, and some repaired and broken images, two ways"
    return f"![{says}](docs/before_after.png)"


def lora(runs: Runs) -> str:
    """What the first command line ends with."""
    threads = torch.get_num_threads()
    machine = f"(torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''})"
    return f"{fenced(from_line(runs.printed('nines'), 'parameters:'))}\n\n{machine}"


def verdict(runs: Runs) -> str:
    """The same without its table."""
    text = runs.printed("nines")
    start = lines_that_begin(text, ("parameters:", "base unchanged:", "repaired:"))
    end = from_line(text, "accuracy:").partition("\nreport:")[0]
    return fenced(f"{start}\n{end}")


def demo(runs: Runs) -> str:
    """The page to draw on as a picture."""
    # Validation images advise 0, where nothing is repaired.
    given = [f"adapter={runs.run_folder('nines')}", f"paths.outputs={runs.outputs}", "scale=1"]
    photograph(given, PROJECT / "docs" / "demo.png")
    says = "The page of demo.py: a nine that the base gets wrong and the adapted network right"
    return f"![{says}](demo.png)"


def repair(runs: Runs) -> str:
    """A few methods of docs/repair.md, with the first columns of its table."""
    _, _, page = (PROJECT / "docs" / "repair.md").read_text().partition("<!-- test -->\n| ")
    lines = {}
    for line in page.partition("\n\n")[0].split("\n| "):
        cells = line.split(" | ")[:3]
        lines[cells[0]] = f"| {' | '.join(cells)} |"
    methods = ["naive (notebook)", "naive, scale auto", "repair_private", "repair"]
    rows = ["method", "---", *methods, "going on with hardness 0.5"]
    return "\n".join(lines[name] for name in rows)


def sweep(runs: Runs) -> str:
    """The sweep's table and its picture."""
    table = from_line(runs.printed("sweep"), "┏").partition("\nsweep: ")[0]
    copyfile(runs.run_folder("sweep") / "summary.png", PROJECT / "docs" / "sweep.png")
    return f"{fenced(table)}\n\n![Validation accuracy over rank and alpha](sweep.png)"


#: From the runs to a block's text, by the document.
MADE: dict[str, tuple[str, Callable[[Runs], str]]] = {
    "before_after": ("README.md", before_after),
    "verdict": ("README.md", verdict),
    "lora": ("docs/runs.md", lora),
    "demo": ("docs/adapters.md", demo),
    "repair": ("README.md", repair),
    "sweep": ("docs/sweeps.md", sweep),
}
#: From what another script printed to a block's text.
PRINTED: dict[str, tuple[str, Callable[[str], str]]] = {
    "kills": ("docs/questions.md", str.strip),
    "benchmark": ("docs/speed.md", str.strip),
    "notebook": ("docs/notebook.md", str.strip),
    "elsewhere": ("docs/notebook.md", str.strip),
    "tour": ("docs/adapters.md", lambda text: fenced(lines_that_begin(text, ("ok", "note")))),
    "several": ("docs/adapters.md", lambda text: fenced(terminal_table(text, "errors with"))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MADE), metavar="NAME[=FILE]")
    parser.add_argument("--runs", type=Path, help="folder for the runs; default: a temporary one")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        runs = Runs(arguments.runs or Path(folder))
        for only in arguments.only:
            name, _, file = only.partition("=")
            if name in MADE and not file:
                document, make = MADE[name]
                body = make(runs)
            elif name in PRINTED and file:
                document, read = PRINTED[name]
                body = read(Path(file).read_text())
            else:
                known = ", ".join([*MADE, *(f"{other}=FILE" for other in PRINTED)])
                parser.error(f"--only={only}: expected one of {known}")
            fill(PROJECT / document, name, body)
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
