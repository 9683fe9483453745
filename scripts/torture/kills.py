"""SIGKILL at any moment: the run goes on, and ends as the one that was not killed, bit by bit.

    python scripts/torture/run.py --only kills

Runs of pretraining, of a repair with everything that draws at random, and sweeps are killed at
random moments: half of them after a random time, half at a random write to the disk, and a third of
the resumed runs once more. Each is then resumed and compared with the uninterrupted run: bases,
adapters and answers by their bytes, results.json but for its times, and every logged value.
"""

import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torture.forks import Answer, Command, import_all
from torture.left import difference, left_by
from torture.report import Row, tell
from torture.small import SMALL, few_images, temporary_files
from torture.writes import at_write, count_writes

_PRETRAIN = (
    *("stage=pretrain", "trainer.max_epochs=2", "trainer.log_every_n_steps=10"),
    "callbacks.checkpoint.every_steps=20",
)
_REPAIR = (
    *("experiment=repair", "data.replay=20", "data.hardness=0.5", "lora.dropout=0.2"),
    *("augment=shift", "callbacks=averaging", "trainer.max_steps=100", "figures=true"),
    "callbacks.checkpoint.every_steps=7",
)
_SWEEP = (
    *("-m", "stage=lora", "lora.rank=1,2,4", "trainer.max_steps=20", "data.replay=9"),
    *("logger=none", "callbacks.checkpoint.every_steps=5"),
)
#: Commands that are killed, and how often of a hundred.
_COMMANDS = {"pretrain": (_PRETRAIN, 35), "repair": (_REPAIR, 45), "sweep": (_SWEEP, 20)}
#: Seconds after which a command hangs.
_LIMIT = 120


class Whole(NamedTuple):
    """The uninterrupted run: what it left, how long it took, and how often it wrote."""

    left: dict[str, Any]
    seconds: float
    writes: int


def whole(place: Path, arguments: list[str]) -> Whole:
    """Run a command to its end."""
    folder = _fresh(place)
    told = place / "writes"
    told.unlink(missing_ok=True)
    started = time.monotonic()
    counted = partial(count_writes, folder / "outputs", told)
    answer = Command("train", arguments, folder, counted).wait(_LIMIT)
    if answer.code:
        raise RuntimeError(answer.err)
    seconds = time.monotonic() - started
    return Whole(left_by(folder / "outputs"), seconds, told.stat().st_size)


def _fresh(place: Path) -> Path:
    """A folder in which a base is the only thing that was made before."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place / "template", folder)
    return folder


def _die(event: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_kill(
    arguments: list[str], folder: Path, reference: Whole, chance: random.Random
) -> Answer:
    """Run a command that is killed at a random moment, unless it ends before."""
    if chance.random() < 0.5:
        number = chance.randint(1, reference.writes)
        dies = partial(at_write, number, _die, folder / "outputs")
        return Command("train", arguments, folder, dies).wait(_LIMIT)
    command = Command("train", arguments, folder)
    end = time.monotonic() + chance.uniform(0, reference.seconds)
    while (answer := command.poll()) is None and time.monotonic() < end:
        time.sleep(0.001)
    if answer is None:
        command.signal(signal.SIGKILL)
        answer = command.wait(_LIMIT)
    return answer


def resumed(arguments: list[str]) -> list[str]:
    """The command that goes on."""
    key = "sweep.resume" if "-m" in arguments else "resume"
    return [*arguments, f"{key}=latest"]


def go_on(
    arguments: list[str], folder: Path, run: Callable[[list[str]], Answer]
) -> tuple[Answer, bool]:
    """Resume what was killed, as its user would; whether there was something to resume."""
    answer = run(resumed(arguments))
    if answer.code == 2 and "this run has finished" in answer.err:
        return Answer(0, "", ""), True
    if answer.code == 2 and "resume=latest: " in answer.err and "found none" in answer.err:
        return run(arguments), False  # it was killed before there was anything to go on with
    return answer, True


def damage(folder: Path, base: bytes, new: dict[str, Any]) -> str | None:
    """What a kill has damaged: the base in use has to be the old or the new one."""
    current = (folder / "outputs" / "base" / "mnist.ckpt").read_bytes()
    if current not in (base, new.get("mnist.ckpt")):
        return "the base is neither the old nor the new one"
    torch.load(folder / "outputs" / "base" / "mnist.ckpt", weights_only=True)
    return None


def kill_one(
    place: Path, arguments: list[str], reference: Whole, chance: random.Random
) -> tuple[str | None, int, bool, int]:
    """Kill a command and resume it.

    Returns:
        What is wrong, how often it was killed, whether something was there to be resumed, and how
        many temporary files are left.
    """
    folder = _fresh(place)
    base = (folder / "outputs" / "base" / "mnist.ckpt").read_bytes()
    answer = run_and_kill(arguments, folder, reference, chance)
    kills = int(answer.code == -signal.SIGKILL)
    problem = damage(folder, base, reference.left)
    if kills and chance.random() < 1 / 3:
        again = run_and_kill(resumed(arguments), folder, reference, chance)
        kills += again.code == -signal.SIGKILL
        problem = problem or damage(folder, base, reference.left)
    answer, was_resumed = go_on(
        arguments, folder, lambda said: Command("train", said, folder).wait(_LIMIT)
    )
    left = temporary_files(folder)
    if answer.code:
        problem = problem or f"exit code {answer.code}: {answer.err[-500:]}"
    else:
        found = left_by(folder / "outputs")
        problem = problem or difference(found, reference.left)
    return problem, kills, was_resumed, len(left)


def kills(place: Path, seed: int, quick: bool) -> list[Row]:
    """Kill and resume a hundred times."""
    import_all()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each resumed run
    common = [*few_images(place / "data"), *SMALL, "paths.outputs=outputs"]
    template = place / "template"
    template.mkdir()
    first = [*common, "stage=pretrain", "seed=1", "trainer.max_steps=60", "logger=none"]
    Command("train", first, template).wait(_LIMIT)
    shutil.rmtree(template / "outputs" / "pretrain")
    chance = random.Random(seed)
    rows = []
    for name, (overrides, times) in _COMMANDS.items():
        arguments = [*overrides, *common]  # -m comes first
        reference = whole(place, arguments)
        tried = lost = resumes = left = again = 0
        for _ in range(max(2, times // 15) if quick else times):
            problem, killed, was_resumed, temporary = kill_one(place, arguments, reference, chance)
            tried, lost = tried + killed, lost + bool(problem)
            resumes, left, again = resumes + was_resumed, left + temporary, again + (killed > 1)
            if problem:
                tell(f"{name}: {problem}")
        told = f"{resumes} resumed, {left} temporary files left"
        rows.append(Row(f"SIGKILL in {name} ({told}), then the same bits", tried, lost))
    return rows
