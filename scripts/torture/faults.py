"""A fault at every write: what was there before still loads, and one line says what happened.

    python scripts/torture/run.py --only faults

Each command is run again and again, and each time another of its writes fails: with an error of the
disk, or because the disk is full from then on, or because the process is killed there. Then the
process gets real limits: on the size of a file, and on open files. Hydra's own files, the log and
the configuration, are left alone, but for the limits and SIGKILL. A case survives if the command
ends with exit code 0, or with 1 or 2 and without a traceback, if all that was there before is what
it was, or wholly new, and if no half-written file has the name of a whole one.
"""

import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_mnist.project import PROJECT
from torture.forks import TRACEBACK, Answer, Command, import_all
from torture.report import Row, tell
from torture.small import prepare, temporary_files, unreadable, with_defaults
from torture.writes import at_write, count_writes

_COMMANDS = {
    "pretrain": ("train", "stage=pretrain", "trainer.max_steps=60", "figures=true"),
    "repair": ("train", "stage=lora", "data.replay=5", "trainer.max_steps=10", "figures=true"),
    "sweep": ("train", "-m", "stage=lora", "seed=1,2", "trainer.max_steps=4", "logger=csv"),
    "eval": ("eval", "adapter=latest", "figures=true"),
    "predict": ("predict", "images=nine.png", "picture=outputs/seen.png"),
    "export": ("export", "adapter=latest", "out=outputs/net.safetensors"),
    "report": ("report",),
    "extraction": ("eval", "data.data_dir=outputs/data", "data.val_size=100"),
}
_LIMIT = 120
#: Files of which the old or the new one has to be there, and those that report.py draws again.
_REPLACED = {"mnist.ckpt"}
#: Bytes of the largest file, and open files beside those that there are.
_SIZES = (2_000, 10_000, 40_000, 150_000)
_DESCRIPTORS = (2, 4, 8, 16, 32)


def _is_hydras(path: str) -> bool:
    """Whether Hydra itself writes the file: it says what went wrong with a traceback."""
    return "/.hydra/" in path or path.endswith(".log")


def _error(event: str, path: str) -> None:
    if _is_hydras(path):
        return
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def _full(event: str, path: str) -> None:
    if event in ("open", "os.mkdir") and not _is_hydras(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _die(event: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: What happens at a write, and whether it happens at all later ones too.
_AT_WRITES = {
    "an error of the disk": (_error, False),
    "a full disk": (_full, True),
    "SIGKILL": (_die, False),
}


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _few_descriptors(more: int) -> None:
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    _limit(resource.RLIMIT_NOFILE, highest + more)


class Bench:
    """Commands to be disturbed, and what they start from."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.common = prepare(place)
        self.template = place / "template"
        raw = Path("MNIST", "raw")
        (self.template / "outputs" / "data" / raw).mkdir(parents=True)
        for archive in (PROJECT / "data" / raw).glob("*.gz"):
            shutil.copy(archive, self.template / "outputs" / "data" / raw)

    def run(self, name: str, before: Callable[[Path], None]) -> tuple[Answer, Path]:
        """Run a command in a fresh folder; ``before`` is told in its process where outputs are."""
        folder = self.place / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.template, folder)
        entry, *overrides = _COMMANDS[name]
        arguments = with_defaults(overrides, self.common[entry])
        command = Command(entry, arguments, folder, partial(before, folder / "outputs"))
        return command.wait(_LIMIT), folder

    def count(self, name: str) -> int:
        """How often a command writes."""
        told = self.place / "writes"
        told.unlink(missing_ok=True)
        answer, _ = self.run(name, partial(_swapped, count_writes, told))
        if answer.code:
            raise RuntimeError(answer.err)
        return told.stat().st_size

    def wrong(self, answer: Answer, folder: Path) -> str | None:
        """What is wrong after a fault; ``None``: nothing."""
        if answer.hung or answer.interrupted:
            return "went on for too long"
        if TRACEBACK in answer.out + answer.err:
            return "traceback"
        if answer.code not in (0, 1, 2, -signal.SIGKILL):
            return f"exit code {answer.code}"
        if answer.code in (1, 2) and not answer.err.strip():
            return "no message"
        for path in self.template.rglob("*"):
            if path.suffix not in (".ckpt", ".safetensors", ".json") or path.name in _REPLACED:
                continue
            now = folder / path.relative_to(self.template)
            if not now.exists() or now.read_bytes() != path.read_bytes():
                return f"{path.relative_to(self.template)} is not what it was"
        if not (folder / "outputs" / "base" / "mnist.ckpt").exists():
            return "the base is gone"
        return unreadable(folder)


def _swapped(call: Callable[[Path, Path], None], told: Path, folder: Path) -> None:
    call(folder, told)


def faults(place: Path, seed: int, quick: bool) -> list[Row]:
    """Disturb each command at its writes, or at some of them."""
    import_all()
    bench = Bench(place)
    chance = random.Random(seed)
    most = 1 if quick else 8  # of a command's writes
    writes = {name: bench.count(name) for name in _COMMANDS}
    cases: dict[str, list[tuple[str, Callable[[Path], None]]]] = {}
    for kind, (then, lasts) in _AT_WRITES.items():
        cases[f"{kind} at a write"] = [
            (name, partial(at_write, number, then, lasts=lasts))
            for name, count in writes.items()
            for number in chance.sample(range(1, count + 1), min(most, count))
        ]
    sizes, descriptors = (_SIZES[:1], _DESCRIPTORS[:1]) if quick else (_SIZES, _DESCRIPTORS)
    cases["files of 2 to 150 KB at most"] = [
        (name, partial(_ignoring, _limit, resource.RLIMIT_FSIZE, size))
        for name in _COMMANDS
        for size in sizes
    ]
    cases["few file descriptors"] = [
        (name, partial(_ignoring, _few_descriptors, more))
        for name in _COMMANDS
        for more in descriptors
    ]
    rows = []
    for kind, chosen in cases.items():
        lost = left = 0
        for name, before in chosen:
            answer, folder = bench.run(name, before)
            left += len(temporary_files(folder))
            if problem := bench.wrong(answer, folder):
                lost += 1
                tell(f"{kind}: {name} {before}: {problem}\n{answer.err[-1500:]}")
        told = f" ({left} temporary files left)" if left else ""
        rows.append(Row(f"{kind}, in {len(writes)} commands{told}", len(chosen), lost))
    return rows


def _ignoring(call: Callable[..., None], *arguments: int) -> None:
    *values, _folder = arguments
    call(*values)
