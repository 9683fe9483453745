"""Eight processes at a time for a minute: nobody ever reads half a file.

    python scripts/torture/run.py --only together

Two pretrain and replace the base again and again, three train adapters on it, two test the latest
adapter, and one reads the images from archives that nobody has extracted yet; all eight begin with
that. A command is lost if it does not end with exit code 0.
"""

import random
import shutil
import time
from collections import Counter
from itertools import count
from pathlib import Path

from lora_mnist.project import PROJECT
from torture.forks import Command, import_all
from torture.report import Row, tell
from torture.small import prepare, temporary_files, unreadable

_TRAIN = ("logger=none", "data.val_size=1000")
_COMMANDS = {
    "pretrain": ("train", "stage=pretrain", "trainer.max_steps=60", *_TRAIN),
    "lora": ("train", "stage=lora", "trainer.max_steps=5", *_TRAIN),
    "eval": ("eval", "adapter=latest", "data.val_size=1000"),
    "extraction": ("eval", "data.val_size=1000"),
}
_CROWD = ("pretrain", "pretrain", "lora", "lora", "lora", "eval", "eval", "extraction")
_LIMIT = 120


def together(place: Path, seed: int, quick: bool) -> list[Row]:
    """Run the crowd for a minute."""
    import_all()
    common = prepare(place)["train"]
    common = tuple(o for o in common if not o.startswith(("data.", "paths.")))
    folder, raw = place / "template", Path("MNIST", "raw")
    archives = sorted((PROJECT / "data" / raw).glob("*.gz"))
    chance, numbers = random.Random(seed), count()
    tried, lost = Counter[str](), Counter[str]()
    running: list[tuple[str, Command]] = []
    end = time.monotonic() + (10 if quick else 60)

    def start(name: str, data: Path) -> None:
        entry, *overrides = _COMMANDS[name]
        here = place / f"at-{next(numbers)}"  # where it stands; outputs are the same for all
        here.mkdir()
        overrides += [f"data.data_dir={data}", f"paths.outputs={folder}/outputs"]
        if entry == "train":
            overrides.append(f"seed={chance.randrange(1000)}")
        running.append((name, Command(entry, [*overrides, *common], here)))

    def fresh() -> Path:
        data = place / f"data-{next(numbers)}"
        (data / raw).mkdir(parents=True)
        for archive in archives:
            shutil.copy(archive, data / raw)
        return data

    data = fresh()
    for name in _CROWD:
        start(name, data)
    while running:
        time.sleep(0.01)
        for name, command in list(running):
            late = time.monotonic() - command.started > _LIMIT
            answer = command.wait(0) if late else command.poll()
            if answer is None:
                continue
            running.remove((name, command))
            tried[name] += 1
            if answer.code:
                lost[name] += 1
                tell(f"{name}: exit code {answer.code}: {answer.err[-1500:]}")
            if time.monotonic() < end:
                start(name, data)
    problem = unreadable(folder)
    if problem:
        tell(problem)
    left = len(temporary_files(folder) + temporary_files(data))
    told = ", ".join(f"{count} {name}" for name, count in tried.items())
    what = f"eight processes at once ({told}; {left} temporary files left)"
    return [Row(what, tried.total(), lost.total() + bool(problem))]
