"""Times this project beside the source notebook and PEFT.

    python scripts/benchmark/run.py                      # every row
    python scripts/benchmark/run.py --only training      # or adapters, folder, evaluation
    python scripts/benchmark/run.py --rounds 1 --quick   # does it work?

Each measurement is a process of its own. The two of a row take turns, round after round, so that
whatever slows the machine down slows both; the ratio is the median over the rounds, with the least
and the most. Memory is our peak, and the difference to the other's. A folder stands beside half of
it, an evaluation beside a plain loop with the same network; both take seconds of a core, the
kernel's among them. Prints a Markdown table and the processor. Needs the extra ``peft`` for the
rows that compare with PEFT.
"""

import argparse
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy
import torch
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "scripts" / "benchmark"
LOOPS = "scripts/benchmark/loops.py"
_SECONDS = "s of a core"


class Row(NamedTuple):
    """Two commands that do the same work."""

    work: str
    unit: str
    beside: str
    theirs: str
    ours: str


def run(command: str) -> tuple[float, float]:
    """Return a process's output after ``measured:``, or its CPU seconds; and its peak, MB."""
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": f"{PROJECT / 'src'}:{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    if process.returncode:
        raise SystemExit(f"python {command}\n{output}")
    measured = re.search(r"^measured: (.+)$", output, re.MULTILINE)
    return float(measured[1]) if measured else seconds, usage.ru_maxrss / 1024


class Benchmark:
    """The rows; their files are in ``folder``."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.steps = 20 if quick else 400
        self.train = f"train.py paths.outputs={folder}/outputs trainer=cpu figures=false"
        #: A training without validation, that prints its steps a second.
        self.watched = (
            f"{self.train} +trainer.limit_val_batches=0 "
            "+callbacks.stopwatch._target_=stopwatch.Stopwatch"
        )

    def training(self) -> list[Row]:
        """Training, beside the source notebook's own loops."""
        few = max(self.steps // 4, 5)  # the notebook's steps are slow, and all alike
        rows = []
        for stage, settings in (("pretrain", ""), ("lora", "digit=9")):
            loop = f"{LOOPS} --steps {few} notebook {stage}"
            ours = f"{self.watched} stage={stage} {settings} trainer.max_steps={self.steps}"
            rows.append(Row(f"`stage={stage}`", "steps/s", "notebook", loop, ours))
        return rows

    def adapters(self) -> list[Row]:
        """LoRA alone, beside PEFT's."""
        rows = []
        for batch in (10, 100):
            loop = f"{LOOPS} --batch {batch} --steps {self.steps}"
            work = f"LoRA in a bare loop, batch {batch}"
            rows.append(Row(work, "steps/s", "PEFT", f"{loop} peft", f"{loop} lora"))
        return rows

    def folder_of_pictures(self) -> list[Row]:
        """Time a test and a repair on a folder of small, made-up pictures, and on half of it."""
        sides = []
        for name, classes in (("half", 500), ("whole", 1000)):
            if self.steps == 20:  # quick
                classes //= 50
            pictures = self.folder / name
            make_pictures(pictures, classes, 32, PARTS)
            sides.append(f"paths.outputs={self.folder}/outputs trainer=cpu data=folder")
            sides[-1] += f" data.data_dir={pictures}"
            net = f"net=mlp net.in_features=3072 net.hidden_sizes=[64] net.num_classes={classes}"
            pretrain = f"train.py stage=pretrain {sides[-1]} {net} figures=false"
            run(f"{pretrain} trainer.max_steps=1000 batches.batch_size=50")
        rows = []
        repair = "train.py experiment=repair target=c007 trainer.max_steps=20"
        for work, command in (("eval.py", "eval.py"), ("experiment=repair, 20 steps", repair)):
            title = f"`{work}`, {PICTURES_OF_A_CLASS * classes:,} pictures"
            half, whole = (f"{command} {side}" for side in sides)
            rows.append(Row(title, _SECONDS, "half of them", half, whole))
        return rows

    def evaluations(self) -> list[Row]:
        """eval.py, with its search for preprocessing, of networks that no record describes."""
        rows = []
        for name, side, count in NETWORKS:
            pictures, weights = self.folder / name, self.folder / f"{name}.pt"
            count = count // 10 if self.steps == 20 else count  # quick
            make_pictures(pictures, 10, side, {"train": 30, "val": count, "test": count})
            own = f"{SETTINGS} data.data_dir={pictures} net._target_=torchvision.models.{name}"
            own += f" prepare.image_size={side} paths.outputs={self.folder}/outputs figures=false"
            base = f"{self.folder}/{name}.ckpt"
            run(f"train.py stage=pretrain {own} trainer.max_steps=60 base_ckpt={base}")
            torch.save(torch.load(base, weights_only=True)["state_dict"], weights)
            title = f"`eval.py`, {name}, {20 * count:,} images of {side} x {side}"
            loop = f"{LOOPS} evaluate {name} {side} {weights} {pictures}"
            theirs = f"{loop}/val {pictures}/test"
            rows.append(
                Row(title, _SECONDS, "plain loop", theirs, f"eval.py {own} base_ckpt={weights}")
            )
        return rows


#: Networks that eval.py evaluates, the side of their images, and how many a part has of a class.
NETWORKS = (("efficientnet_b0", 64, 100), ("mobilenet_v2", 128, 50), ("resnet18", 224, 25))
SETTINGS = "trainer=cpu data=folder net=custom net.num_classes=10 prepare.mean=0.5 prepare.std=0.5"

#: Pictures of a class, by part.
PARTS = {"train": 60, "val": 6, "test": 10}
PICTURES_OF_A_CLASS = sum(PARTS.values())


def make_pictures(folder: Path, classes: int, side: int, parts: Mapping[str, int]) -> None:
    """Write noise, ``side`` pixels wide and high, around a color for each class."""
    generator = numpy.random.default_rng(0)
    for number in range(classes):
        color = generator.integers(60, 196, 3)
        for part, count in parts.items():
            of_class = folder / part / f"c{number:03}"
            of_class.mkdir(parents=True)
            noise = generator.integers(-60, 60, (count, side, side, 3))
            for place, pixels in enumerate((color + noise).astype(numpy.uint8)):
                Image.fromarray(pixels).save(of_class / f"{place}.png")


KINDS = {
    "training": Benchmark.training,
    "adapters": Benchmark.adapters,
    "folder": Benchmark.folder_of_pictures,
    "evaluation": Benchmark.evaluations,
}


def spread(values: Sequence[float]) -> str:
    """Median, and the least and the most."""
    digits = 0 if min(values) >= 100 else 2
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({low}-{high})"


def measure(row: Row, rounds: int) -> str:
    """Let both take turns; the row as it is printed."""
    numbers, peaks = [], []
    for _ in range(rounds):
        there, memory_there = run(row.theirs)
        here, memory_here = run(row.ours)
        times_as_fast = there / here if row.unit == _SECONDS else here / there
        numbers.append((there, here, times_as_fast, memory_here - memory_there))
        peaks.append(memory_here)
    *columns, more = zip(*numbers, strict=True)
    cells = [row.work, row.unit, row.beside, *map(spread, columns)]
    cells.append(f"{statistics.median(peaks):.0f} MB ({statistics.median(more):+.0f})")
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", path.read_text() if path.exists() else "")
    return name[1] if name else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps")
    arguments = parser.parse_args()
    print("| work | unit | beside | there | here | times as fast | memory |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    with TemporaryDirectory(prefix="benchmark-") as name:
        benchmark = Benchmark(Path(name), arguments.quick)
        run(f"{benchmark.train} stage=pretrain trainer.max_steps=100")  # the base of the others
        for kind in arguments.only:
            for row in KINDS[kind](benchmark):
                print(measure(row, arguments.rounds), flush=True)
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    print(f"\n{processor()}, {threads} threads, torch {version('torch')}, {date.today()}")


if __name__ == "__main__":
    main()
