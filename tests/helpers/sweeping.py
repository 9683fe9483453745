"""What the tests of sweeps share."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers.commands import ROOT

#: A command that sweeps and trains nothing.
TOY = "tests/sweep/toy.py"
#: Short trainings, and a grid over them.
FEW = ("stage=lora", "digit=9", "trainer.max_steps=5", "logger=none")
GRID = ("lora.rank=1,2,4", "lora.alpha=1,4")


def only_sweep(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    return folder


def read_summary(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def statuses(sweep: Path) -> list[str]:
    return [row["status"] for row in read_summary(sweep)]


def without_times(sweep: Path) -> list[dict[str, str]]:
    return [
        {key: value for key, value in row.items() if not key.startswith(("seconds.", "worker."))}
        for row in read_summary(sweep)
    ]


def job(sweep: Path, name: str) -> Path:
    (folder,) = sweep.glob(f"{name}-*")
    return folder


def write_job(sweep: Path, name: str, overrides: list[str], **outcome: Any) -> Path:
    """A job's folder; ``accuracy`` makes it finished, ``error`` failed, neither interrupted."""
    folder = sweep / name
    folder.mkdir(parents=True)
    record = {
        "number": 0,
        "command": outcome.get("command", 1),
        "overrides": ["stage=lora", *overrides],
        "varied": [override.split("=")[0] for override in overrides],
        "error": outcome.get("error"),
    }
    (folder / "job.json").write_text(json.dumps(record))
    if "accuracy" in outcome:
        val = {"accuracy": outcome["accuracy"], "errors_of_target": 4, "errors_per_class": [3, 4]}
        results = {"target": outcome.get("digit", 1), "val": val, "seconds": {"total": 1.25}}
        (folder / "results.json").write_text(json.dumps(results | outcome.get("more", {})))
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def start(
    tmp_path: Path, *overrides: str, entry: str = "train.py", **environment: str
) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, entry, *overrides, f"paths.outputs={tmp_path}/outputs"],
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
