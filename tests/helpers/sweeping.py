"""Helpers of the tests of sweeps."""

import csv
import os
import subprocess
import sys

from helpers.commands import ROOT
from lora_mnist.disk.files import write_json

#: A command that sweeps and trains nothing.
TOY = "tests/helpers/toy.py"
#: The columns of the tests' tables, by the form of configs/sweep/columns/default.yaml.
COLUMNS = {
    "val_errors_on_target": "val.errors_of_target",
    "test_accuracy": "test.accuracy",
    "scale": "scale",
    "seconds": "seconds",
}


def read_summary(sweep):
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_job(sweep, name, overrides, command=1, **outcome):
    """A job's folder; ``accuracy`` makes it finished, ``error`` failed.

    Command 1 is the sweep's last one.
    """
    swept = dict(text.split("=") for text in overrides)
    write_json(sweep / "sweep.json", {"swept": [*swept], "command": 1})
    record = {
        "overrides": ["stage=lora", *overrides],
        "swept": swept,
        "command": command,
        "status": "finished" if "accuracy" in outcome else "failed",
        "error": outcome.get("error"),
    }
    write_json(sweep / name / "job.json", record)
    if "accuracy" in outcome:
        val = {"accuracy": outcome["accuracy"], "errors_of_target": 4}
        results = {"val": val, "test": {}, "seconds": 1.25}
        write_json(sweep / name / "results.json", results | outcome.get("more", {}))
    return sweep / name


def start(tmp_path, *overrides):
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, TOY, *overrides, f"paths.outputs={tmp_path}/outputs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
