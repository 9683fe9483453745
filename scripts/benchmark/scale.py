"""What a sweep costs beside the training, and how that grows: the numbers of docs/sweeps.md.

    python scripts/benchmark/scale.py sweeps     # seconds a job, for each launcher: ten minutes
    python scripts/benchmark/scale.py shipped    # what Ray is given with each job
    python scripts/benchmark/scale.py summary    # summaries of up to 10,000 jobs

Needs the extras ``sweep`` and ``ray``. The jobs of ``sweeps`` are adapters of 100 steps. Beside
them stand jobs that are refused before they begin: they cost what Hydra, the launcher and the
records cost. A further job costs the difference between a longer and a shorter sweep; what the
shorter one costs beyond its jobs is the start. Seconds are given twice: of the clock, and of the
cores, which other work on the machine changes less. The jobs of ``summary`` are copies of one that
ran, with other keys and other numbers.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extras import require_extra
from hydra import compose, initialize_config_dir
from tables import line, markdown, spread

import lora_mnist.sweep.folder  # noqa: F401 the resolvers that the configuration needs
from lora_mnist.cli import run
from lora_mnist.project import PROJECT

LAUNCHERS = {
    "one process": [],
    "joblib, 2 workers": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    "Ray, 2 cores": ["launcher=ray", "hydra.launcher.ray.init.num_cpus=2"],
}


def seconds(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of the clock that ``work`` takes."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def own_seconds(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of the cores that this process computes for ``work``."""
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def cost(work: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Seconds of the clock, and of the cores in processes that ``work`` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = seconds(work, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(*overrides: str, code: int = 0) -> None:
    """Run ``python train.py``; it has to end with ``code``."""
    command = [sys.executable, "train.py", *overrides]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")


def pretrain(folder: str) -> list[str]:
    """Make a base in ``folder``; return the overrides that start from it and write there."""
    settings = [f"base_ckpt={folder}/base.ckpt", f"paths.outputs={folder}/outputs"]
    train("stage=pretrain", "trainer.max_steps=100", *settings)
    return settings


def sweeps(rounds: int) -> None:
    """Print what a further job and the start cost, for each launcher."""

    def hundred_steps(jobs: int, *settings: str) -> None:
        train(*settings, f"seed=range(0,{jobs})")

    def refused(jobs: int, *settings: str) -> None:
        train(*settings, "seed=-1", f"data.batch_size=range(0,{jobs})", code=1)

    header = ["launcher", "jobs", "a further job, s", "of the cores", "start, s", "of the cores"]
    print(markdown(header, []))
    with TemporaryDirectory() as folder:
        settings = ["-m", "stage=lora", "digit=9", *pretrain(folder)]
        for launcher, overrides in LAUNCHERS.items():
            for sweep, few, many in ((hundred_steps, 4, 12), (refused, 10, 60)):
                measured = []
                for _ in range(rounds):
                    short, long = (cost(sweep, jobs, *settings, *overrides) for jobs in (few, many))
                    further = [(b - a) / (many - few) for a, b in zip(short, long, strict=True)]
                    start = [a - few * job for a, job in zip(short, further, strict=True)]
                    measured.append([*further, *start])
                columns = zip(zip(*measured, strict=True), (3, 3, 1, 1), strict=True)
                cells = [launcher, sweep.__name__.replace("_", " ")]
                cells += [spread(values, digits) for values, digits in columns]
                print(line(cells), flush=True)


def shipped() -> None:
    """Print what composing a job takes, and the size of the arguments of its task in Ray."""
    import cloudpickle
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.types import HydraContext

    overrides = ["stage=lora", "digit=9", "lora.rank=8", "lora.alpha=4"]
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3", job_name="train"):
        times = [own_seconds(compose, "train", overrides) for _ in range(20)]
        config = compose("train", overrides, return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        size = len(cloudpickle.dumps((context, config, Singleton.get_state())))
    print(f"composed in {1000 * statistics.median(times):.0f} ms, {size / 1000:.0f} kB shipped")


def summary(sizes: tuple[int, ...]) -> None:
    """Print what summarising sweeps of ``sizes`` jobs takes, as one grid and as two."""
    from lora_mnist.sweep.summary import Ranked, summarize

    print(markdown(["jobs", "one grid, s", "two grids, s"], []))
    with TemporaryDirectory() as folder:
        train("-m", "stage=lora", "digit=9", "trainer.max_steps=5", *pretrain(folder))
        (job,) = [path.parent for path in Path(folder).glob("outputs/multirun/*/*/job.json")]
        for size in sizes:
            cells = [f"{size:,}"]
            for grids in (1, 2):
                sweep = Path(folder) / f"{size}-{grids}"
                generate(job, sweep, size, grids)
                taken = own_seconds(lambda folder: summarize(Ranked(folder)), sweep)
                cells.append(f"{taken:.1f}")
            print(line(cells), flush=True)


def generate(job: Path, sweep: Path, size: int, grids: int) -> None:
    """A sweep of ``size`` finished jobs like ``job``; of two grids the first varies no seed."""
    record = json.loads((job / "job.json").read_text())
    results = json.loads((job / "results.json").read_text())
    draw = random.Random(0)
    for number in range(size):
        swept = {"lora.rank": number % 10 + 1, "lora.alpha": number // 10 % 10 + 1}
        if grids == 1 or number >= size // 2:
            swept["seed"] = number // 100
        overrides = [f"{key}={value}" for key, value in swept.items()]
        errors = [draw.randrange(100) for _ in range(10)]
        results["val"] |= {"accuracy": 1 - sum(errors) / 5000, "errors_per_class": errors}
        folder = sweep / f"{','.join(overrides)}-{number:012x}"
        shutil.copytree(job / ".hydra", folder / ".hydra")
        own = {"number": number, "varied": list(swept)}
        own["overrides"] = [*record["overrides"], *overrides]
        (folder / "job.json").write_text(json.dumps(record | own))
        (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("sweeps", "shipped", "summary"))
    parser.add_argument("--rounds", type=int, default=3, help="how often each sweep is run")
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores\n", flush=True)
    if arguments.what == "sweeps":
        require_extra("scale.py", "sweep", "hydra_plugins.hydra_joblib_launcher")
        require_extra("scale.py", "ray", "hydra_plugins.hydra_ray_launcher")
        sweeps(arguments.rounds)
    elif arguments.what == "shipped":
        require_extra("scale.py", "ray", "cloudpickle")
        shipped()
    else:
        summary((100, 1_000, 10_000))


if __name__ == "__main__":
    run(main)
