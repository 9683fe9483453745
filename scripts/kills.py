"""Kill runs with SIGKILL at random moments, resume them, and count who ends in the same bits.

    python scripts/kills.py               # ten kills of each command: a quarter of an hour
    python scripts/kills.py --kills 50    # what the README shows

Four commands: pretraining, a repair (replay, hardness, distillation, scheduler), an adapter with
augmentation and accumulated gradients, and a sweep. Each runs once to its end. Then it is killed,
resumed (every third time killed again, and resumed again), and what it leaves is compared with what
the run without a kill left: bases and adapters by their bytes, the numbers of results.json. Then
eight commands start together in one outputs folder: all have to end with exit code 0, and leave no
half-written or temporary file. Prints a table; the exit code is 1 if anything was lost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parents[1]
SMALL = ("net.hidden_sizes=[16]", "trainer=cpu", "logger=none", "figures=false")
EVERY = "callbacks.checkpoint.every_n_train_steps"  # steps from one checkpoint to the next
COMMANDS = {
    "pretrain": f"stage=pretrain data.batch_size=50 trainer.max_steps=600 {EVERY}=20",
    "repair": f"experiment=repair digit=9 trainer.max_steps=300 {EVERY}=10",
    "lora": "stage=lora digit=9 augment=shift trainer.accumulate_grad_batches=3 "
    f"trainer.max_steps=200 {EVERY}=7",
    "sweep": f"-m stage=lora digit=9 data.replay=9 lora.rank=1,2,4 trainer.max_steps=60 {EVERY}=10",
}
TOGETHER = [
    "train.py stage=pretrain trainer.max_steps=200 seed=1",
    "train.py stage=pretrain trainer.max_steps=200 seed=2",
    "train.py stage=lora digit=4 trainer.max_steps=20",
    "train.py stage=lora digit=8 trainer.max_steps=20",
    "train.py stage=lora digit=9 trainer.max_steps=20",
    "eval.py adapter=latest",
    "eval.py adapter=latest",
    "export.py adapter=latest format=safetensors out=nine.safetensors",
]
LIMIT = 600  # seconds, after which a command hangs


class Place:
    """A folder with a base and an adapter in ``outputs``, made new for each try."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "template"
        self.outputs = folder / "outputs"
        self.run = self.outputs / "run"
        for command in (
            "train.py stage=pretrain data.batch_size=50 trainer.max_steps=300 seed=1",
            "train.py stage=lora digit=9 trainer.max_steps=10",
        ):
            self.start(command).communicate()
        shutil.move(self.outputs, self.template)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        entry, *overrides = command.split()
        usual = {"train.py": SMALL, "eval.py": SMALL[:2], "export.py": SMALL[:1]}[entry]
        outputs = f"paths.outputs={self.outputs}"
        return subprocess.Popen(
            [sys.executable, str(PROJECT / entry), *overrides, *usual, outputs],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "src")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def renew(self) -> None:
        """Throw away what the last try left."""
        shutil.rmtree(self.outputs, ignore_errors=True)
        shutil.copytree(self.template, self.outputs)

    def begin(self, command: str) -> subprocess.Popen[str]:
        """Start a command whose run, or sweep, is in :attr:`run`."""
        mode = "sweep" if command.startswith("-m") else "run"
        return self.start(f"train.py {command} hydra.{mode}.dir={self.run}")

    def resume(self, command: str) -> subprocess.Popen[str]:
        """Go on with what is in :attr:`run`, or begin again where nothing was left to resume."""
        key, left = "resume", "checkpoints/*.ckpt"
        if command.startswith("-m"):
            key, left = "sweep.resume", "*/.hydra"
        if not any(self.run.glob(left)):
            shutil.rmtree(self.run, ignore_errors=True)
            return self.begin(command)
        return self.start(f"train.py {command} {key}={self.run}")

    def left(self) -> dict[str, Any]:
        """What a command has left: bases and adapters as bytes, results without times."""
        left: dict[str, Any] = {p.name: p.read_bytes() for p in self.outputs.glob("base/*.ckpt")}
        for results in (*self.run.glob("results.json"), *self.run.glob("*/results.json")):
            job = results.parent.relative_to(self.run)
            numbers = json.loads(results.read_text())
            left[str(job)] = {key: value for key, value in numbers.items() if key != "seconds"}
            for path in results.parent.glob("adapter/*"):
                left[f"{job}/{path.name}"] = path.read_bytes()
        return left

    def broken_file(self) -> str | None:
        """The first file that does not load, or a temporary one."""
        readers: dict[str, Callable[[Path], Any]] = {
            ".ckpt": lambda path: torch.load(path, weights_only=True),
            ".safetensors": load_file,
            ".json": lambda path: json.loads(path.read_text()),
        }
        for path in sorted(self.outputs.rglob("*")):
            if ".tmp" in path.name:
                return f"temporary: {path}"
            if path.suffix in readers:
                try:
                    readers[path.suffix](path)
                except Exception as error:  # whatever a damaged file causes
                    return f"{path}: {error}"
        return None


def kill(process: subprocess.Popen[str], appears: Path, seconds: float) -> bool:
    """Kill a process ``seconds`` after its folder appears; whether it was still running."""
    while process.poll() is None and not appears.exists():
        time.sleep(0.005)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False


def kill_and_compare(
    place: Place, name: str, command: str, kills: int, chance: random.Random
) -> tuple[int, int]:
    """Kill a command ``kills`` times; return how often it was tried, and how often it was lost."""
    place.renew()
    times = [time.monotonic()]
    process = place.begin(command)
    while process.poll() is None and not place.run.exists():
        time.sleep(0.005)
    times.append(time.monotonic())
    _, problem = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise RuntimeError(f"{command}\n{problem}")
    seconds, start = time.monotonic() - times[1], times[1] - times[0]
    expected = place.left()
    tried = lost = 0
    while tried < kills:
        place.renew()
        if not kill(place.begin(command), place.run, chance.uniform(0, seconds)):
            continue  # it was faster
        tried += 1
        if chance.random() < 1 / 3:
            kill(place.resume(command), place.run, start + chance.uniform(0, seconds))
        if (place.run / "results.json").exists():
            problem, code = "", 0  # it had finished
        else:
            process = place.resume(command)
            _, problem = process.communicate(timeout=LIMIT)
            code = process.returncode
        left = place.left()
        different = [k for k in left.keys() | expected.keys() if left.get(k) != expected.get(k)]
        if code or different:
            lost += 1
            print(
                f"{name}: exit code {code}, {sorted(different)} differ\n{problem}", file=sys.stderr
            )
    return tried, lost


def eight_together(place: Place) -> int:
    """Start eight commands at once in one outputs folder; return how many of them were lost."""
    place.renew()
    processes = [place.start(command) for command in TOGETHER]
    lost = 0
    for process, command in zip(processes, TOGETHER, strict=True):
        _, problem = process.communicate(timeout=LIMIT)
        if process.returncode:
            lost += 1
            print(f"{command}: {problem}", file=sys.stderr)
    if broken := place.broken_file():
        print(broken, file=sys.stderr)
        lost = max(lost, 1)
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--only", choices=[*COMMANDS, "together"], help="one of them alone")
    parser.add_argument("--rounds", type=int, default=3, help="of eight commands together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    total = 0
    with TemporaryDirectory(prefix="kills-") as folder:
        place = Place(Path(folder))
        print("| what was tried | tried | the same bits | lost |")
        print("| --- | ---: | ---: | ---: |")
        for name, command in COMMANDS.items():
            if arguments.only in (None, name):
                tried, lost = kill_and_compare(place, name, command, arguments.kills, chance)
                total += lost
                print(f"| SIGKILL in {name} | {tried} | {tried - lost} | {lost} |", flush=True)
        if arguments.only in (None, "together"):
            tried = len(TOGETHER) * arguments.rounds
            lost = sum(eight_together(place) for _ in range(arguments.rounds))
            total += lost
            print(f"| eight commands at once | {tried} | {tried - lost} | {lost} |", flush=True)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
