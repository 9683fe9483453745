"""The tables and pictures of README and docs, made again from real runs.

    python scripts/readme.py                      # all that this script makes: some ten minutes
    python scripts/readme.py --only demo sweep   # some of them
    python scripts/readme.py --only keys          # the keys of the reference: a second
    python scripts/readme.py --only hotfix=FILE   # from what another script printed, in FILE
    python scripts/readme.py --folder runs        # keeps the runs there, and takes what is there

A block stands between ``<!-- NAME: made by SCRIPT, SUM -->`` and ``<!-- /NAME -->``; nothing else
in a document changes. The sum covers the block's text and the pictures that it links to, so that a
test finds what was changed by hand. The commands are those that the documents print. Pictures
of pages need Chromium and playwright.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from tempfile import TemporaryDirectory

import torch
from readme_pictures import photograph, photograph_report

from lora_mnist.files import atomic_write

PROJECT = Path(__file__).resolve().parents[1]
DOCUMENTS = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
DOCUMENTS += sorted(PROJECT.glob("examples/*/README.md"))
BLOCK = re.compile(
    r"^<!-- (?P<name>[^:\n]+): made by (?P<by>[^\n]+), (?P<sum>[0-9a-f]{12}) -->\n"
    r"(?P<body>.*?)\n<!-- /(?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
#: What the verdict is followed by.
AFTER_VERDICT = re.compile("\n(?:To export|The weakest of|report:)")
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]+)\)")

EXAMPLE = PROJECT / "examples" / "own_classifier"

#: By name, a command's folder in outputs and the command, as the documents print it.
COMMANDS = {
    "pretrain": ("pretrain/pretrain", "stage=pretrain"),
    "nines": ("lora/nines", "stage=lora digit=9 trainer.max_steps=100"),
    "repair": ("lora/repair", "experiment=repair digit=weakest"),
    "sweep": ("multirun/sweep", "-m stage=lora digit=9 lora.rank=1,2,4,8 lora.alpha=1,4,8"),
}

#: The files whose keys the reference lists, by their group.
KEYS = {"data": "configs/data/folder.yaml", "prepare": "configs/images_and_net.yaml"}
#: Said beside numbers of MNIST's, so that nobody suspects a fault where his own differ.
OTHERS = "another processor has another base, 419 to 568 errors"


def checksum(body: str, folder: Path) -> str:
    """SHA-256 of a block and of the pictures that it links to; ``folder`` is the document's."""
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


def fenced(text: str) -> str:
    """Text as it is on a terminal."""
    return f"```text\n{text.rstrip()}\n```"


def from_line(text: str, start: str) -> str:
    """Return the lines of ``text`` from the last one on that begins with ``start``."""
    return text[f"\n{text}".rindex(f"\n{start}") :]


def lines_that_begin(text: str, start: tuple[str, ...]) -> str:
    """Return the lines of ``text`` that begin with one of ``start``."""
    return "\n".join(line for line in text.splitlines() if line.startswith(start))


def run(command: str, here: Path) -> str:
    """Return the output of a line of bash that begins with ``python``."""
    print(command, file=sys.stderr, flush=True)
    done = subprocess.run(
        ["bash", "-c", command.replace("python", sys.executable, 1)],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return done.stdout


class Runs:
    """The commands, each run once in ``folder``; what they print does not name the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"

    def find_folder(self, name: str) -> Path:
        """Return the folder that a command leaves."""
        self.printed(name)
        return self.outputs / COMMANDS[name][0]

    def printed(self, name: str) -> str:
        """Return the output of a command."""
        place, command = COMMANDS[name]
        outputs = f" paths.outputs={self.outputs}"
        printed = self.folder / f"{name}.txt"
        if not printed.exists():
            if name != "pretrain":
                self.printed("pretrain")
            mode = "sweep" if name == "sweep" else "run"
            given = f"{command}{outputs} hydra.{mode}.dir={self.outputs / place}"
            printed.write_text(run(f"python {PROJECT}/train.py {given}", self.folder))
        text = printed.read_text().replace(outputs, "")
        return text.replace(f"{self.folder}/", "").replace(f"{PROJECT}/", "")

    def example(self, script: str) -> str:
        """Return the output of a script in the example's commands, which run in a copy of it."""
        here = self.folder / "example"
        if not here.exists():
            copytree(EXAMPLE, here, ignore=ignore_patterns("photos", "*.pt", "*.onnx"))
            blocks = re.findall(
                r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL
            )
            for command in "".join(blocks).splitlines():
                name = re.match(r"python (?:\.\./\.\./)?(\w+\.py)", command)
                if not name:  # it installs something
                    continue
                if "../../" in command:
                    command = command.replace("../../", f"{PROJECT}/")
                    command += f" paths.outputs={self.outputs}"
                (here / f"{name[1]}.txt").write_text(run(command, here))
        text = (here / f"{script}.txt").read_text()
        return text.replace(f" paths.outputs={self.outputs}", "").replace(f"{PROJECT}/", "../../")


def machine() -> str:
    """On what a block's numbers depend."""
    processor = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
    threads = torch.get_num_threads()
    return f"{processor}, torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}"


def repair(runs: Runs) -> str:
    """Show the best recipe on the weakest class: its report's pictures, and its output."""
    text = runs.printed("repair")
    folder = runs.find_folder("repair")
    copyfile(folder / "figures" / "classes.png", PROJECT / "docs" / "repair.png")
    photograph_report(folder / "report.html", "#repaired", PROJECT / "docs" / "repaired.png")
    end = AFTER_VERDICT.split(from_line(text, "accuracy:"))[0]
    parts = [lines_that_begin(text, ("target=", "base unchanged:")), end]
    pictures = (
        "![Errors of each digit before and after the repair](docs/repair.png)\n"
        "![Some of the repaired images](docs/repaired.png)"
    )
    return f"{pictures}\n\n{fenced(chr(10).join(parts))}\n\n({machine()}; {OTHERS})"


def lora(runs: Runs) -> str:
    """Show some of the verdict on the notebook's adapter."""
    some = lines_that_begin(
        runs.printed("nines"), ("accuracy:", "On nines:", "On the other digits:")
    )
    return f"{fenced(some)}\n\n({machine()}; {OTHERS})"


def keys(runs: Runs) -> str:
    """Show the keys of a folder of images, with the comments of their file."""
    lines, above = ["| key | what it says |", "| --- | --- |"], ""
    for group, file in KEYS.items():
        _, _, text = f"\n{(PROJECT / file).read_text()}".rpartition(f"\n{group}:\n")
        for line in textwrap.dedent(text).splitlines():
            key = re.fullmatch(r"([a-z]\w*): (.*?)(?: # (.*))?", line)
            if key:
                name = f"{group}.{key[1]}" if key[2] == "null" else f"{group}.{key[1]}={key[2]}"
                lines.append(f"| `{name}` | {above}{key[3] or ''} |")
            if not line.startswith("#"):
                above = ""
            elif not line.startswith("#   "):  # which would be a command
                above += f"{line[2:]} "
    return "\n".join(lines)


def demo(runs: Runs) -> str:
    """Show a picture of the page to draw on."""
    given = [f"adapter={runs.find_folder('nines')}", f"paths.outputs={runs.outputs}"]
    photograph(given, PROJECT / "docs" / "demo.png")
    says = "The page of demo.py: a nine that the base gets wrong and the adapted network right"
    return f"![{says}](demo.png)"


def sweep(runs: Runs) -> str:
    """Show the lines below a sweep's table, and its picture."""
    below = runs.printed("sweep").rpartition("┘\n")[2].partition("\nsweep: ")[0]
    copyfile(runs.find_folder("sweep") / "summary.png", PROJECT / "docs" / "sweep.png")
    return f"{fenced(below)}\n\n![Validation accuracy over rank, a line for each alpha](sweep.png)"


def example_train(runs: Runs) -> str:
    """Show the example's repair: the class, the proof, the table and the verdict."""
    text = runs.example("train.py")
    start = lines_that_begin(text, ("target=", "trial=", "lora.", "refit:", "base unchanged:"))
    table = AFTER_VERDICT.split(text[text.rindex("┏") :])[0].splitlines()
    total = next(number for number, line in enumerate(table) if line.startswith("├"))
    shown = fenced("\n".join([start, *table[:6], "...", *table[total:]]))
    return f"{shown}\n\n({machine()})"


def example_export(runs: Runs) -> str:
    """Show how the example's ONNX file was checked, and its answers for some pictures."""
    checked = lines_that_begin(runs.example("export.py"), ("repaired.onnx",))
    some = runs.example("use_repaired.py").splitlines()[:5]
    return fenced("\n".join([checked, *some, "..."]))


#: By name, a block from the runs.
MADE = {f.__name__: f for f in (repair, lora, keys, demo, sweep, example_train, example_export)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MADE), metavar="NAME[=FILE]")
    parser.add_argument("--folder", type=Path, help="of the runs; default: a temporary one")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        runs = Runs(folder)
        for only in arguments.only:
            name, _, file = only.partition("=")
            if file:
                body = Path(file).read_text().strip()
            elif name in MADE:
                body = MADE[name](runs)
            else:
                parser.error(f"--only={only}: expected {only}=FILE, or one of {', '.join(MADE)}")
            if not any(fill(document, name, body) for document in DOCUMENTS):
                parser.error(f"--only={only}: no document has a block of that name")
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
