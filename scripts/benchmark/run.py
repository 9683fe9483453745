"""How fast: this project beside the source notebook, PEFT, torchvision and bare imports.

    python scripts/benchmark/run.py                      # every row: half an hour
    python scripts/benchmark/run.py --only training      # or adapters, start, sweep, folder, ...
    python scripts/benchmark/run.py --rounds 1 --quick   # does it work?

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
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "scripts" / "benchmark"
LOOPS = "scripts/benchmark/loops.py"


class Measured(NamedTuple):
    """One measurement: steps, images or seconds, and megabytes."""

    value: float
    memory: float


#: A command, or what measures in a way of its own.
Way = str | Callable[[], Measured]


class Row(NamedTuple):
    """Two ways to do the same work; ``beside`` is empty where ours stands alone."""

    work: str
    unit: str
    beside: str
    theirs: Way | None
    ours: Way


def run(command: str) -> Measured:
    """Run a Python process: what it prints as ``measured: NUMBER``, or else its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": f"{PROJECT / 'src'}:{HERE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    value = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {command}\n{printed}")
    if found := re.search(r"^measured: (.+)$", printed, re.MULTILINE):
        value = float(found[1])
    return Measured(value, usage.ru_maxrss / 1024)


class Benchmark:
    """The rows; what they leave is in ``folder``."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.steps, self.jobs, self.pictures = (20, 4, 500) if quick else (400, 1000, 20_000)
        self.outputs = f"paths.outputs={folder}/outputs"
        self.usual = f"{self.outputs} trainer=cpu figures=false"
        self.train = f"train.py {self.usual}"
        #: A training without validation, that prints its steps a second.
        self.watched = (
            f"{self.train} +trainer.limit_val_batches=0 publish=false "
            "+callbacks.stopwatch._target_=stopwatch.Stopwatch"
        )

    def training(self) -> list[Row]:
        """Training and testing, beside the source notebook's own loops."""
        few = max(self.steps // 4, 5)  # the notebook's steps are slow, and all alike
        loop = f"{LOOPS} --steps {few} notebook"
        rows = []
        for stage in ("pretrain", "lora"):
            ours = f"{self.watched} stage={stage} trainer.max_steps={self.steps}"
            rows.append(Row(f"`stage={stage}`", "steps/s", "notebook", f"{loop} {stage}", ours))
        return [*rows, Row("test pass", "images/s", "notebook", f"{loop} test", self.test)]

    def test(self) -> Measured:
        """Test images a second, as results.json has them."""
        with TemporaryDirectory(dir=self.folder) as place:
            command = f"{self.train} stage=pretrain trainer.max_steps=1 publish=false"
            used = run(f"{command} hydra.run.dir={place}/run")
            results = json.loads(Path(place, "run", "results.json").read_text())
        return Measured(10_000 / results["seconds"]["test"], used.memory)

    def adapters(self) -> list[Row]:
        """LoRA alone, beside PEFT's."""
        rows = []
        for batch in (10, 100):
            loop = f"{LOOPS} --batch {batch} --steps {self.steps}"
            work = f"LoRA in a bare loop, batch {batch}"
            rows.append(Row(work, "steps/s", "PEFT", f"{loop} peft", f"{loop} lora"))
        return rows

    def start(self) -> list[Row]:
        """What a command takes before it does anything, beside bare imports."""
        first_step = f"{self.train} stage=lora +callbacks.stop._target_=stopwatch.ExitAtFirstStep"
        imports, hydra = "-c 'import torch, lightning.pytorch'", "-c 'import hydra'"
        return [
            Row("a command's start, to its first step", "s", "bare imports", imports, first_step),
            Row("`train.py --help`", "s", "import hydra", hydra, "train.py --help"),
        ]

    def sweep(self) -> list[Row]:
        """What a sweep takes beside its trainings."""
        report = f"report of a sweep of {self.jobs:,} jobs"
        return [
            Row("a further job of a sweep", "s", "", None, self.further_job),
            Row(report, "s", "", None, self.report()),
        ]

    def further_job(self) -> Measured:
        """Seconds that one more job of a hundred steps adds to a sweep."""
        sweep = f"train.py -m {self.usual} stage=lora digit=9 trainer.max_steps=100"
        few, many = run(f"{sweep} lora.rank=1,2"), run(f"{sweep} lora.rank=1,2,3,4,5,6")
        return Measured((many.value - few.value) / 4, many.memory)

    def report(self) -> str:
        """``report.py`` on a sweep of copies of one job, each with another seed."""
        sweep = self.folder / "sweep"
        two_jobs = "stage=lora seed=0,1 trainer.max_steps=1"
        run(f"train.py -m {self.usual} {two_jobs} hydra.sweep.dir={sweep}")
        first = next(path.parent for path in sweep.glob("*/job.json") if "seed=0" in str(path))
        for seed in range(2, self.jobs):
            copy = sweep / first.name.replace("seed=0", f"seed={seed}")
            copy.mkdir()
            shutil.copy(first / "results.json", copy)
            job = (first / "job.json").read_text().replace('"seed=0"', f'"seed={seed}"')
            (copy / "job.json").write_text(job)
        return f"report.py run={sweep} {self.outputs}"

    def photos(self) -> list[Row]:
        """Training on a folder of pictures, beside torchvision's ImageFolder."""
        photos, batch = self.folder / "photos", 100
        draw_pictures(photos, self.pictures)
        steps = self.pictures * 8 // 10 // batch  # a tenth validates, a tenth tests
        ours = (
            f"{self.watched} +callbacks.stopwatch.images={batch} trainer.max_steps={steps} "
            f"stage=pretrain data=folder data.data_dir={photos} data.batch_size={batch} "
            "data.mean=0.5 data.std=0.5 net=custom net._target_=lora_mnist.MLP logger=none "
            "net.in_features=12288 net.hidden_sizes=[64] net.num_classes=10"
        )
        loop = f"{LOOPS} --batch {batch} --steps {steps} folder {photos} --workers"
        work, rows = f"{self.pictures:,} pictures", []
        for workers in (0, 2):
            here = f"{ours} data.in_memory=false data.num_workers={workers}"
            from_disk = f"{work} from the disk, {workers} workers"
            rows.append(Row(from_disk, "images/s", "ImageFolder", f"{loop} {workers}", here))
        here, beside = f"{ours} data.in_memory=true", "ImageFolder, 0 workers"
        return [*rows, Row(f"{work}, in memory", "images/s", beside, f"{loop} 0", here)]

    def transformer(self) -> list[Row]:
        """A repair of a vision transformer at 224 pixels, beside a loop of as many steps."""
        photos, steps, batch = self.folder / "large", 40, 20
        draw_pictures(photos, self.pictures // 20)
        base = self.folder / "vit.ckpt"
        save = f"import torch, loops; torch.save(loops.Vit().state_dict(), {str(base)!r})"
        run(f"-c {shlex.quote(save)}")
        ours = (
            f"{self.train} experiment=repair target=weakest data=folder data.data_dir={photos} "
            f"data.image_size=224 data.mean=0.5 data.std=0.5 base_ckpt={base} net=custom "
            f"net._target_=loops.Vit trainer.max_steps={steps} data.batch_size=4 data.replay=16 "
            "logger=none"
        )
        loop = f"{LOOPS} repair {photos} --batch {batch} --steps {steps}"
        return [Row("repair of a transformer at 224 pixels", "s", "plain loop", loop, ours)]


KINDS = {
    "training": Benchmark.training,
    "adapters": Benchmark.adapters,
    "start": Benchmark.start,
    "sweep": Benchmark.sweep,
    "folder": Benchmark.photos,
    "transformer": Benchmark.transformer,
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
        for way, found in ((row.theirs, theirs), (row.ours, ours)):
            if way is not None:
                found.append(run(way) if isinstance(way, str) else way())
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
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps, jobs and pictures")
    arguments = parser.parse_args()
    print("| work | unit | beside | there | here | times as fast | MB there | MB here |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
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
