"""Kill runs with SIGKILL at random moments, resume them, and count who ends in the same bits.

    python scripts/kills.py            # ten kills a case: an hour
    python scripts/kills.py --quick    # one kill a case

Each case runs once to its end. Then it is killed and resumed, every third time twice, and compared
with the run without a kill: bases and adapters by their bytes, results.json by its numbers. Then
eight commands start together in one outputs folder: all have to end with exit code 0 and leave no
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parents[1]
SMALL = ("net.hidden_sizes=[16]", "trainer=cpu", "logger=csv", "figures=false")
#: A checkpoint every seven steps, at no round number of anything.
OFTEN = (
    "callbacks.checkpoint.every_n_train_steps=7",
    "callbacks.checkpoint.train_time_interval=null",
)
#: The settings of runs that are cut short, here and, with fewer steps, in tests/test_resume.py.
CASES = {
    "pretrain": "stage=pretrain batches.batch_size=50 trainer.max_steps=600",
    "epochs": "stage=pretrain batches.batch_size=500 trainer.max_epochs=3 "
    "trainer.accumulate_grad_batches=3",
    "short": "stage=pretrain trainer.max_epochs=12 +trainer.limit_train_batches=1",
    "repair": "experiment=repair digit=9 trainer.max_steps=300",
    "null": "stage=lora digit=9 batches.seed=null lora.dropout=0.5 batches.replay=9 "
    "optimizer.lr=auto trainer.max_steps=200",
    "everything": "stage=lora digit=9 batches.replay=9 loss.target_weight=0.5 lora.dropout=0.2 "
    "augment=shift trainer.accumulate_grad_batches=3 scheduler=linear callbacks=averaging "
    "trainer.log_every_n_steps=4 trainer.max_steps=150",
    "pissa": "stage=lora digit=4 lora=pissa lora.dropout=0.2 refit=true augment=flip "
    "batches.replay=9 trainer.max_steps=150",
    "sweep": "-m stage=lora digit=9 batches.replay=9 lora.rank=1,2,4 trainer.max_steps=60",
    "ddp_sim": "stage=lora digit=9 trainer=ddp_sim lora.dropout=0.2 augment=shift "
    "batches.replay=10 trainer.max_steps=150",
}
for group in ("callbacks", "scheduler"):
    for file in sorted((PROJECT / "configs" / group).glob("*.yaml")):
        if file.stem not in ("default", "none", "constant"):
            preset = f"{group}={file.stem}"
            CASES[preset] = f"stage=lora digit=9 {preset} trainer.max_steps=150"
#: These make the base and the adapter with which each try starts.
FIRST = (
    "train.py stage=pretrain batches.batch_size=50 trainer.max_steps=300 seed=1",
    "train.py stage=lora digit=9 trainer.max_steps=10",
)
TOGETHER = (
    "train.py stage=pretrain trainer.max_steps=200 seed=1",
    "train.py stage=pretrain trainer.max_steps=200 seed=2",
    "train.py stage=lora digit=4 trainer.max_steps=20",
    "train.py stage=lora digit=8 trainer.max_steps=20",
    "train.py stage=lora digit=9 trainer.max_steps=20",
    "eval.py adapter=latest",
    "eval.py adapter=latest",
    "export.py adapter=latest out=nine.safetensors",
)
LIMIT = 600  # seconds, after which a command hangs


def renew(outputs: Path) -> None:
    """Put what each try starts with into ``outputs``, and nothing else."""
    shutil.rmtree(outputs, ignore_errors=True)
    shutil.copytree(outputs.with_name("template"), outputs)


def start(command: str, outputs: Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    entry, *overrides = command.split()
    usual = list({"train.py": SMALL, "eval.py": SMALL[:2], "export.py": SMALL[:1]}[entry])
    if "trainer=" in command:
        usual.remove("trainer=cpu")
    return subprocess.Popen(
        [sys.executable, str(PROJECT / entry), *overrides, *usual, f"paths.outputs={outputs}"],
        cwd=outputs.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, with the processes that Lightning starts
    )


def begin_or_resume(case: str, outputs: Path) -> subprocess.Popen[str]:
    """Go on with what is in ``outputs/run``, or begin where there is nothing to resume."""
    run, command = outputs / "run", f"train.py {CASES[case]} {' '.join(OFTEN)}"
    key, folder, left = "resume", "hydra.run.dir", "checkpoints/*.ckpt"
    if case == "sweep":
        key, folder, left = "sweep.resume", "hydra.sweep.dir", "*/.hydra"
    if any(run.glob(left)):
        return start(f"{command} {key}={run}", outputs)
    shutil.rmtree(run, ignore_errors=True)
    return start(f"{command} {folder}={run}", outputs)


def killed(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process and those it started after some ``seconds``; say if it was still running."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def left_in(outputs: Path) -> dict[str, Any]:
    """The bases and adapters in ``outputs`` as bytes, and the results without times."""
    left: dict[str, Any] = {}
    for path in outputs.rglob("*"):
        name = str(path.relative_to(outputs))
        if path.name == "results.json":
            numbers = json.loads(path.read_text())
            del numbers["seconds"]
            left[name] = numbers
        elif path.match("base/*.ckpt") or path.match("adapter/*"):
            left[name] = path.read_bytes()
    return left


def broken_file(outputs: Path) -> str | None:
    """The first file that does not load, or a temporary one."""
    for path in sorted(outputs.rglob("*")):
        if ".tmp" in path.name:
            return f"temporary: {path}"
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except Exception as error:  # whatever a damaged file causes
            return f"{path}: {error}"
    return None


def kill_and_compare(case: str, outputs: Path, kills: int) -> int:
    """Kill a case ``kills`` times; return how often it was lost."""
    renew(outputs)
    began = time.monotonic()
    process = begin_or_resume(case, outputs)
    while process.poll() is None and not (outputs / "run").exists():
        time.sleep(0.005)
    first = time.monotonic() - began  # an earlier kill leaves nothing to resume
    _, problem = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise RuntimeError(f"{case}: {problem}")
    last = time.monotonic() - began
    expected = left_in(outputs)
    tried = lost = 0
    while tried < kills:
        renew(outputs)
        if not killed(begin_or_resume(case, outputs), random.uniform(first, last)):
            continue  # it was faster
        tried += 1
        if random.random() < 1 / 3:
            killed(begin_or_resume(case, outputs), random.uniform(first, last))
        code, problem = 0, ""
        if not (outputs / "run" / "results.json").exists():
            process = begin_or_resume(case, outputs)
            _, problem = process.communicate(timeout=LIMIT)
            code = process.returncode
        left = left_in(outputs)
        different = [k for k in left.keys() | expected.keys() if left.get(k) != expected.get(k)]
        if code or different:
            lost += 1
            message = f"exit code {code}, {sorted(different)} differ"
            print(f"{case}: {message}\n{problem}", file=sys.stderr)
    return lost


def eight_together(outputs: Path) -> int:
    """Start eight commands at once in one outputs folder; return how many of them were lost."""
    renew(outputs)
    processes = [start(command, outputs) for command in TOGETHER]
    lost = 0
    for process, command in zip(processes, TOGETHER, strict=True):
        _, problem = process.communicate(timeout=LIMIT)
        if process.returncode:
            lost += 1
            print(f"{command}: {problem}", file=sys.stderr)
    if broken := broken_file(outputs):
        print(broken, file=sys.stderr)
        lost = max(lost, 1)
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one kill a case")
    parser.add_argument("--only", choices=[*CASES, "together"], help="one of them alone")
    arguments = parser.parse_args()
    kills = 1 if arguments.quick else 10
    total = 0
    with TemporaryDirectory(prefix="kills-") as folder:
        outputs = Path(folder, "outputs")
        for command in FIRST:
            start(command, Path(folder, "template")).communicate()
        print("| what was tried | tried | the same bits | lost |")
        print("| --- | ---: | ---: | ---: |")
        for name in [*CASES, "together"]:
            if arguments.only not in (None, name):
                continue
            if name == "together":
                label, tried = "eight commands at once", len(TOGETHER)
                lost = eight_together(outputs)
            else:
                label, tried = f"SIGKILL in {name}", kills
                lost = kill_and_compare(name, outputs, kills)
            total += lost
            print(f"| {label} | {tried} | {tried - lost} | {lost} |", flush=True)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
