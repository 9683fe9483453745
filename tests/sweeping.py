"""What the tests of sweeps share."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

FEW = ("stage=lora", "digit=9", "trainer.max_steps=5", "logger=none")
GRID = ("lora.rank=1,2,4", "lora.alpha=1,4")


def only_sweep(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    return folder


def read_summary(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(sweep: Path) -> list[dict[str, str]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds.")}
        for row in read_summary(sweep)
    ]


def job(sweep: Path, name: str) -> Path:
    (folder,) = sweep.glob(f"{name}-*")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def start(tmp_path: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = [sys.executable, "train.py", *overrides, f"paths.outputs={tmp_path}/outputs"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_results(process: subprocess.Popen[str], tmp_path: Path, count: int) -> None:
    while len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
