"""How fast: this project beside the source notebook, PEFT, torchvision and bare imports.

    python scripts/benchmark/run.py                      # every row: half an hour
    python scripts/benchmark/run.py --only training      # or adapters, start, folder, ...
    python scripts/benchmark/run.py --rounds 1 --quick   # does it work?

Each measurement is a process of its own. The two of a row take turns, round after round, so that
whatever slows the machine down slows both; the ratio is the median over the rounds, with the least
and the most. Prints a Markdown table and the processor. Needs the extra ``peft`` for the rows that
compare with PEFT.
"""

import argparse
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "scripts" / "benchmark"
LOOPS = "scripts/benchmark/loops.py"


class Row(NamedTuple):
    """Two commands that do the same work."""

    work: str
    unit: str
    beside: str
    theirs: str
    ours: str


def run(command: str) -> tuple[float, float]:
    """What a Python process prints after ``measured:``, else its seconds; its peak memory, MB."""
    started = time.perf_counter()
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
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"python {command}\n{output}")
    measured = re.search(r"^measured: (.+)$", output, re.MULTILINE)
    return float(measured[1]) if measured else seconds, usage.ru_maxrss / 1024


class Benchmark:
    """The rows; their files are in ``folder``."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.steps, self.pictures = (20, 500) if quick else (400, 20_000)
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

    def start(self) -> list[Row]:
        """The start of a command, beside bare imports."""
        stop = "+callbacks.stop._target_=stopwatch.ExitAtFirstStep"
        first_step = f"{self.train} stage=lora digit=9 {stop}"
        lightning = "-c 'import torch, lightning.pytorch'"
        return [
            Row("a command's start, to its first step", "s", "bare imports", lightning, first_step),
            Row("`train.py --help`", "s", "import hydra", "-c 'import hydra'", "train.py --help"),
        ]

    def photos(self) -> list[Row]:
        """Training on a folder of pictures, beside torchvision's ImageFolder."""
        photos, batch = self.folder / "photos", 100
        draw_pictures(photos, self.pictures)
        steps = self.pictures * 8 // 10 // batch  # a tenth validates, a tenth tests
        ours = (
            f"{self.watched} +callbacks.stopwatch.images={batch} trainer.max_steps={steps} "
            f"stage=pretrain data=folder data.data_dir={photos} batches.batch_size={batch} "
            "net=custom net._target_=lora_mnist.MLP logger=none "
            "net.in_features=12288 net.hidden_sizes=[64] net.num_classes=10"
        )
        loop = f"{LOOPS} --batch {batch} --steps {steps} folder {photos} --workers"
        work, rows = f"{self.pictures:,} pictures", []
        for workers in (0, 2):
            # With a transform, pictures are read when they are needed.
            transform = "'prepare.transform={_target_: loops.as_tensor}'"
            here = f"{ours} {transform} data.num_workers={workers}"
            from_disk = f"{work} from the disk, {workers} workers"
            rows.append(Row(from_disk, "images/s", "ImageFolder", f"{loop} {workers}", here))
        here, beside = f"{ours} prepare.mean=0.5 prepare.std=0.5", "ImageFolder, 0 workers"
        return [*rows, Row(f"{work}, in memory", "images/s", beside, f"{loop} 0", here)]


KINDS = {
    "training": Benchmark.training,
    "adapters": Benchmark.adapters,
    "start": Benchmark.start,
    "folder": Benchmark.photos,
}


def draw_pictures(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files of 64 x 64 pixels in ten classes."""
    from PIL import Image

    chance = random.Random(0)
    for number in range(count):
        path = folder / f"class-{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.frombytes("RGB", (16, 16), chance.randbytes(16 * 16 * 3))
        shade = Image.new("RGB", (16, 16), (number % 10 * 28,) * 3)  # by which classes differ
        coarse = Image.blend(coarse, shade, 0.7)
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)


def spread(values: Sequence[float]) -> str:
    """Median, and the least and the most."""
    digits = 0 if min(values) >= 100 else 2
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({low}-{high})"


def measure(row: Row, rounds: int) -> str:
    """Let both take turns; the row as it is printed."""
    numbers = []
    for _ in range(rounds):
        there, memory_there = run(row.theirs)
        here, memory_here = run(row.ours)
        times_as_fast = there / here if row.unit == "s" else here / there
        numbers.append((there, here, times_as_fast, memory_here - memory_there))
    *columns, more = zip(*numbers, strict=True)
    cells = [row.work, row.unit, row.beside, *map(spread, columns)]
    cells.append(f"{statistics.median(more):+.0f} MB")
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """The name of the processor."""
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", path.read_text() if path.exists() else "")
    return name[1] if name else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps and pictures")
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
