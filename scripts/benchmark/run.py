"""How fast: this project beside the source notebook, PEFT, torchvision and bare imports.

    python scripts/benchmark/run.py                      # every row: half an hour
    python scripts/benchmark/run.py --only training      # or adapters, start, sweep, folder
    python scripts/benchmark/run.py --rounds 1 --steps 20 --pictures 500     # does it work?

Each measurement is a process of its own. The two of a row take turns, round after round, so that
whatever slows the machine down slows both; the ratio is the median over the rounds, with the least
and the most. Memory is the most that one process of a measurement had resident. Prints a Markdown
table and the processor. Needs the extra ``peft`` for the rows that compare with PEFT.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "scripts" / "benchmark"
KINDS = ("training", "adapters", "start", "sweep", "folder")


class Measured(NamedTuple):
    """One measurement: steps, images or seconds, and megabytes."""

    value: float
    memory: float


Measurement = Callable[[], Measured]


class Row(NamedTuple):
    """Two ways to do the same work; ``beside`` is empty where ours stands alone."""

    work: str
    unit: str
    beside: str
    theirs: Measurement | None
    ours: Measurement


def run(*command: str) -> tuple[Measured, str]:
    """Run a Python process; its seconds and its memory, and what it prints."""
    environment = os.environ | {"PYTHONPATH": f"{PROJECT / 'src'}:{HERE}"}
    started = time.perf_counter()
    with TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"python {' '.join(command)}\n{printed}{errors.read()}")
    return Measured(seconds, usage.ru_maxrss / 1024), printed


def seconds(*command: str) -> Measurement:
    """How long a Python process takes."""
    return lambda: run(*command)[0]


def loop(*arguments: object) -> Measurement:
    """What a loop of loops.py prints."""

    def measure() -> Measured:
        used, printed = run(str(HERE / "loops.py"), *map(str, arguments))
        return Measured(float(printed.splitlines()[-1]), used.memory)

    return measure


class Commands:
    """This project's commands, with all they leave in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.usual = [f"paths.outputs={folder}/outputs", "trainer=cpu"]
        self.run("stage=pretrain trainer.max_steps=100")

    def run(self, overrides: str) -> Measured:
        """What ``train.py`` takes with these overrides."""
        return run("train.py", *overrides.split(), *self.usual)[0]

    def train(self, steps: int, overrides: str, images: int = 1) -> Measurement:
        """Steps a second, times the ``images`` of a step, of a training without validation."""
        path = self.folder / "rate"
        watched = (
            f"{overrides} trainer.max_steps={steps} +trainer.limit_val_batches=0 figures=false "
            f"+callbacks.stopwatch._target_=stopwatch.Stopwatch +callbacks.stopwatch.path={path}"
        )

        def measure() -> Measured:
            used = self.run(watched)
            return Measured(images * float(path.read_text()), used.memory)

        return measure

    def test(self) -> Measured:
        """Test images a second, as results.json has them."""
        place = self.folder / "test"
        shutil.rmtree(place, ignore_errors=True)
        folders = f"hydra.run.dir={place} base_ckpt={place}/base.ckpt"
        used = self.run(f"stage=pretrain trainer.max_steps=1 figures=false {folders}")
        results = json.loads((place / "results.json").read_text())
        return Measured(10_000 / results["seconds"]["test"], used.memory)

    def further_job(self) -> Measured:
        """Seconds that one more job of a hundred steps adds to a sweep."""
        sweep = "-m stage=lora digit=9 trainer.max_steps=100"
        few, many = self.run(f"{sweep} lora.rank=1,2"), self.run(f"{sweep} lora.rank=1,2,3,4,5,6")
        return Measured((many.value - few.value) / 4, many.memory)

    def summary(self, jobs: int) -> Measurement:
        """Seconds of ``report.py`` on a sweep of copies of one job, each with another seed."""
        sweep = self.folder / f"sweep-{jobs}"
        self.run(f"-m stage=lora seed=0,1 trainer.max_steps=1 hydra.sweep.dir={sweep}")
        first = next(path.parent for path in sweep.glob("*/job.json") if "seed=0" in str(path))
        for seed in range(2, jobs):
            copy = sweep / first.name.replace("seed=0", f"seed={seed}")
            copy.mkdir()
            shutil.copy(first / "results.json", copy)
            job = (first / "job.json").read_text().replace('"seed=0"', f'"seed={seed}"')
            (copy / "job.json").write_text(job)
        return seconds("report.py", f"run={sweep}", *self.usual[:1])


def pictures(folder: Path, count: int) -> Path:
    """Write ``count`` JPEG files of 64 x 64 pixels in ten classes; return their folder."""
    from PIL import Image

    chance = random.Random(0)
    for number in range(count):
        path = folder / "photos" / f"class-{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.frombytes("RGB", (16, 16), chance.randbytes(16 * 16 * 3))
        shade = Image.new("RGB", (16, 16), (number % 10 * 28,) * 3)  # by which classes differ
        coarse = Image.blend(coarse, shade, 0.7)
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return folder / "photos"


def rows_of(
    kind: str, folder: Path, commands: Commands, arguments: argparse.Namespace
) -> list[Row]:
    """The rows of one kind."""
    steps = arguments.steps
    if kind == "training":
        few = max(steps // 4, 5)  # the notebook's steps are slow, and all alike
        rows = []
        for stage, command in (("pretrain", "stage=pretrain"), ("lora", "stage=lora digit=9")):
            theirs = loop("notebook", stage, "--steps", few)
            here = commands.train(steps, command)
            rows.append(Row(f"`stage={stage}`", "steps/s", "notebook", theirs, here))
        theirs = loop("notebook", "test", "--steps", few)
        return [*rows, Row("test pass", "images/s", "notebook", theirs, commands.test)]
    if kind == "adapters":
        rows = []
        for batch in (10, 100):
            theirs = loop("peft", "--batch", batch, "--steps", steps)
            ours = loop("lora", "--batch", batch, "--steps", steps)
            work = f"LoRA in a bare loop, batch {batch}"
            rows.append(Row(work, "steps/s", "PEFT", theirs, ours))
        return rows
    if kind == "start":
        stop = "+callbacks.stop._target_=stopwatch.ExitAtFirstStep"
        start = seconds("train.py", "stage=lora", "digit=9", stop, *commands.usual)
        imports = seconds("-c", "import torch, lightning.pytorch")
        hydra = seconds("-c", "import hydra")
        help_ = seconds("train.py", "--help")
        return [
            Row("a command's start, to its first step", "s", "bare imports", imports, start),
            Row("`train.py --help`", "s", "import hydra", hydra, help_),
        ]
    if kind == "sweep":
        report = commands.summary(arguments.jobs)
        return [
            Row("a further job of a sweep", "s", "", None, commands.further_job),
            Row(f"report of a sweep of {arguments.jobs:,} jobs", "s", "", None, report),
        ]
    photos, batch = pictures(folder, arguments.pictures), 100
    steps = arguments.pictures * 8 // 10 // batch  # a tenth is for validation, a tenth for the test
    overrides = (
        f"stage=pretrain data=folder data.data_dir={photos} data.batch_size={batch} data.mean=0.5 "
        "data.std=0.5 net=custom net._target_=lora_mnist.MLP net.in_features=12288 "
        f"net.hidden_sizes=[64] net.num_classes=10 logger=none base_ckpt={folder}/photos.ckpt"
    )
    rows, work = [], f"{arguments.pictures:,} pictures"
    for workers in (0, arguments.workers):
        theirs = loop("folder", photos, "--batch", batch, "--steps", steps, "--workers", workers)
        disk = f"{overrides} data.in_memory=false data.num_workers={workers}"
        here = commands.train(steps, disk, images=batch)
        from_disk = f"{work} from the disk, {workers} workers"
        rows.append(Row(from_disk, "images/s", "ImageFolder", theirs, here))
    memory = commands.train(steps, f"{overrides} data.in_memory=true", images=batch)
    beside = "ImageFolder, 0 workers"
    return [*rows, Row(f"{work}, in memory", "images/s", beside, rows[0].theirs, memory)]


def spread(values: list[float]) -> str:
    """Median, and the least and the most."""
    digits = 0 if min(values) >= 100 else 2
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def measure(row: Row, rounds: int) -> str:
    """Let both take turns; the row as it is printed."""
    theirs: list[Measured] = []
    ours: list[Measured] = []
    for _ in range(rounds):
        if row.theirs:
            theirs.append(row.theirs())
        ours.append(row.ours())
    ratios = [a.value / b.value for a, b in zip(ours, theirs, strict=False)]
    if row.unit == "s":
        ratios = [1 / ratio for ratio in ratios]
    cells = [row.work, row.unit, row.beside]
    for values in ([each.value for each in theirs], [each.value for each in ours], ratios):
        cells.append(spread(values) if values else "")
    for side in (theirs, ours):
        cells.append(f"{max(each.memory for each in side):,.0f}" if side else "")
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """The name of the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", path.read_text() if path.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--jobs", type=int, default=1000, help="of the sweep that is reported")
    parser.add_argument("--pictures", type=int, default=20_000, help="in the folder")
    parser.add_argument("--workers", type=int, default=2, help="that read pictures")
    arguments = parser.parse_args()
    print("| work | unit | beside | there | here | times as fast | MB there | MB here |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with TemporaryDirectory(prefix="benchmark-") as name:
        commands = Commands(Path(name))
        for kind in arguments.only:
            for row in rows_of(kind, Path(name), commands, arguments):
                print(measure(row, arguments.rounds), flush=True)
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    print(f"\n{processor()}, {threads} threads, torch {version('torch')}, {date.today()}")


if __name__ == "__main__":
    main()
