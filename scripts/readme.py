"""The tables and pictures of README and docs, made again from real runs.

    python scripts/readme.py                      # those that this script makes: some three minutes
    python scripts/readme.py --only lora sweep    # some of them
    python scripts/readme.py --only kills=FILE    # from what another script printed, in FILE

A block stands between ``<!-- NAME: made by SCRIPT, SUM -->`` and ``<!-- /NAME -->``; nothing else
in a document changes. The sum is of the block's text and of the pictures that it links to, so that
a test finds what was changed by hand. The commands are those that the documents print. The picture
of the page needs Chromium and playwright.
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
DOCUMENTS = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
BLOCK = re.compile(
    r"^<!-- (?P<name>[^:\n]+): made by (?P<by>[^\n]+), (?P<sum>[0-9a-f]{12}) -->\n"
    r"(?P<body>.*?)\n<!-- /(?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]+)\)")

#: By name the folder in outputs and the command, as the documents print it.
COMMANDS = {
    "pretrain": ("pretrain/pretrain", "stage=pretrain"),
    "nines": ("lora/nines", "stage=lora digit=9 trainer.max_steps=100"),
    "repair": ("lora/repair", "experiment=repair digit=9"),
    "sweep": ("multirun/sweep", "-m stage=lora digit=9 lora.rank=1,2,4,8 lora.alpha=1,4,8"),
}


def checksum(body: str, folder: Path) -> str:
    """Of a block's text and the pictures that it links to, from the document's ``folder``."""
    total = hashlib.sha256(body.encode())
    for picture in PICTURE.findall(body):
        total.update((folder / picture).read_bytes())
    return total.hexdigest()[:12]


def fill(document: Path, name: str, body: str) -> bool:
    """Put ``body`` between the markers ``name`` of a document; whether it has them."""
    text = document.read_text()
    for block in BLOCK.finditer(text):
        if block["name"] == name:
            head = f"<!-- {name}: made by {block['by']}, {checksum(body, document.parent)} -->"
            made = f"{head}\n{body}\n<!-- /{name} -->"
            with atomic_write(document) as path:
                path.write_text(text[: block.start()] + made + text[block.end() :])
            return True
    return False


# --- parts of what was printed --------------------------------------------------------------------


def fenced(text: str) -> str:
    """Text as it is on a terminal."""
    return f"```text\n{text}\n```"


def from_line(text: str, start: str) -> str:
    """The lines of ``text`` from the last one on that begins with ``start``."""
    return text[f"\n{text}".rindex(f"\n{start}") :].rstrip()


def lines_that_begin(text: str, start: tuple[str, ...]) -> str:
    """The lines of ``text`` that begin with one of ``start``."""
    return "\n".join(line for line in text.splitlines() if line.startswith(start))


def terminal_table(text: str, head: str) -> str:
    """The table on a terminal whose head begins with ``head``."""
    start = text.rindex("┏", 0, text.index(f"┃ {head} "))
    return text[start : text.index("┘", start) + 1]


# --- what the blocks hold -------------------------------------------------------------------------


class Runs:
    """The commands, each run once in ``folder``; what they print does not name it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"
        self.texts: dict[str, str] = {}

    def left(self, name: str) -> Path:
        """The folder that a command leaves."""
        self.printed(name)
        return self.outputs / COMMANDS[name][0]

    def printed(self, name: str) -> str:
        """What a command prints."""
        if name not in self.texts:
            if name != "pretrain":
                self.printed("pretrain")
            place, command = COMMANDS[name]
            mode = "sweep" if name == "sweep" else "run"
            ours = f" paths.outputs={self.outputs}"
            given = f"{command}{ours} hydra.{mode}.dir={self.outputs / place}"
            print(f"python train.py {given}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, str(PROJECT / "train.py"), *given.split()],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stdout)
            text = done.stdout.replace(ours, "").replace(f"{self.folder}/", "")
            self.texts[name] = text.replace(f"{PROJECT}/", "")
        return self.texts[name]


def before_after(runs: Runs) -> str:
    """Both repairs as a picture."""
    folders = {
        "naive: only nines": runs.left("nines"),
        "experiment=repair: nines and others": runs.left("repair"),
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
    given = [f"adapter={runs.left('nines')}", f"paths.outputs={runs.outputs}"]
    photograph(given, PROJECT / "docs" / "demo.png")
    says = "The page of demo.py: a nine that the base gets wrong and the adapted network right"
    return f"![{says}](demo.png)"


def repair(runs: Runs) -> str:
    """A few methods of docs/repair.md, with the first columns of its table."""
    _, _, page = (PROJECT / "docs" / "repair.md").read_text().partition("<!-- test: ")
    lines = {}
    for line in page.partition("\n\n")[0].splitlines():
        cells = line.split(" | ")[:3]
        lines[cells[0].removeprefix("| ")] = f"{' | '.join(cells)} |"
    methods = ["naive (notebook)", "naive, scale auto", "repair_private", "repair"]
    rows = ["method", "---", *methods, "going on with hardness 0.5"]
    return "\n".join(lines[name] for name in rows)


def sweep(runs: Runs) -> str:
    """The sweep's table and its picture."""
    table = from_line(runs.printed("sweep"), "┏").partition("\nsweep: ")[0]
    copyfile(runs.left("sweep") / "summary.png", PROJECT / "docs" / "sweep.png")
    return f"{fenced(table)}\n\n![Validation accuracy over rank and alpha](sweep.png)"


#: By name, a block from the runs.
MADE: dict[str, Callable[[Runs], str]] = {
    "before_after": before_after,
    "verdict": verdict,
    "lora": lora,
    "demo": demo,
    "repair": repair,
    "sweep": sweep,
}
#: By name, a block from what another script printed, where it is not all of that.
PARTS: dict[str, Callable[[str], str]] = {
    "tour": lambda text: fenced(lines_that_begin(text, ("ok", "note"))),
    "stacked": lambda text: fenced(terminal_table(text, "errors with")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MADE), metavar="NAME[=FILE]")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        for only in arguments.only:
            name, _, file = only.partition("=")
            if file:
                body = PARTS.get(name, str.strip)(Path(file).read_text())
            elif name in MADE:
                body = MADE[name](runs)
            else:
                parser.error(f"--only={only}: expected {only}=FILE, or one of {', '.join(MADE)}")
            if not any(fill(document, name, body) for document in DOCUMENTS):
                parser.error(f"--only={only}: no document has a block of that name")
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
