"""Two hundred jobs in one process: nothing grows. And nothing is written where nobody looks.

    python scripts/torture/run.py --only leaks

A sweep runs its jobs in its own process, of which the memory, the open files and the threads are
read after each job. Then every command runs with an empty home, and leaves it empty.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from lora_mnist.project import PROJECT
from torture.report import Row, tell
from torture.small import prepare, with_defaults

#: After so many jobs the process has all that it will need.
_WARM = 20
#: Bytes that it may grow by after that.
_GROWTH = 50 << 20
#: Files and threads that a job can have at work when it is looked at.
_AT_WORK = 5
_LIMIT = 120

_COMMANDS = {
    "pretrain": ("train", "stage=pretrain", "trainer.max_steps=60", "figures=true"),
    "repair": ("train", "stage=lora", "trainer.max_steps=5", "figures=true"),
    "sweep": ("train", "-m", "stage=lora", "seed=1,2", "trainer.max_steps=4"),
    "eval": ("eval", "adapter=latest", "figures=true"),
    "predict": ("predict", "images=nine.png", "adapter=latest", "picture=outputs/seen.png"),
    "export": ("export", "adapter=latest", "format=onnx", "out=outputs/net.onnx"),
    "report": ("report",),
    "demo": ("demo", "adapter=latest", "server.port=0"),
}


class Size(NamedTuple):
    """What a process holds: bytes, open files, threads."""

    memory: int
    files: int
    threads: int


def size_of(process: int) -> Size:
    """What a process holds now."""
    proc = Path("/proc", str(process))
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    files = sum(1 for _ in (proc / "fd").iterdir())
    return Size(int(status["VmRSS"].split()[0]) << 10, files, int(status["Threads"]))


def grown(place: Path, common: list[str], jobs: int) -> str | None:
    """Run a sweep of so many jobs in one process; what has grown, or ``None``."""
    arguments = ["-m", "stage=lora", f"seed=range({jobs})", "trainer.max_steps=2", *common]
    sizes: dict[int, Size] = {}
    with (place / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "train.py"), *arguments],
            cwd=place / "template",
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            done = sum(1 for _ in (place / "template").glob("outputs/multirun/*/*/results.json"))
            if done and done not in sizes:
                sizes[done] = size_of(process.pid)
            time.sleep(0.05)
    if process.returncode:
        return (place / "said").read_text()[-1000:]
    # The last job's folder may be seen when its process is about to draw the summary.
    numbers = sorted(n for n in sizes if n < jobs)
    first = sizes[next(n for n in numbers if n >= min(_WARM, jobs // 2))]
    last = sizes[numbers[-1]]
    tell(f"after {_WARM} jobs {first}, after {numbers[-1]} jobs {last}")
    if last.memory - first.memory > _GROWTH:
        return f"memory grew by {(last.memory - first.memory) >> 20} MB"
    # A job in the middle of its work has some files open, and TensorBoard's thread.
    middle = len(numbers) // 2
    for part in ("files", "threads"):
        halves = (numbers[:middle], numbers[middle:])
        early, late = (max(getattr(sizes[n], part) for n in half) for half in halves)
        if late > early + _AT_WORK:
            return f"{part} grew from {early} to {late}"
    return None


def strays(place: Path, name: str, common: tuple[str, ...]) -> list[str]:
    """The files that a command leaves in its home and where it was started."""
    entry, *overrides = _COMMANDS[name]
    home, temporary = place / f"home-{name}", place / f"tmp-{name}"
    for folder in (home, temporary):
        folder.mkdir()
    before = set((place / "template").iterdir())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL"))}
    command = [sys.executable, str(PROJECT / f"{entry}.py"), *with_defaults(overrides, common)]
    process = subprocess.Popen(
        command,
        cwd=place / "template",
        env={**environment, "HOME": str(home), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    if name == "demo":
        for line in process.stdout:
            if "page: http" in line:
                process.terminate()
    said, _ = process.communicate(timeout=_LIMIT)
    if process.returncode not in (0, 143 if name == "demo" else 0):
        return [f"exit code {process.returncode}: {said[-1000:]}"]
    new = set((place / "template").iterdir()) - before
    return [str(path.relative_to(place)) for path in [*home.rglob("*"), *new] if path.is_file()]


def leaks(place: Path, seed: int, quick: bool) -> list[Row]:
    """Run the long sweep, then every command with an empty home."""
    common = prepare(place)
    jobs = 40 if quick else 200
    problem = grown(place, list(common["train"]), jobs)
    if problem:
        tell(problem)
    what = f"jobs in one process: memory within 50 MB of job {_WARM}, as many files and threads"
    rows = [Row(what, jobs, jobs if problem else 0)]
    names = ("repair",) if quick else tuple(_COMMANDS)
    lost = 0
    for name in names:
        if found := strays(place, name, common[_COMMANDS[name][0]]):
            lost += 1
            tell(f"{name} wrote {', '.join(found)}")
    rows.append(Row("commands with an empty home, which stays empty", len(names), lost))
    return rows
