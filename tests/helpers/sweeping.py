"""Helpers of the tests of sweeps."""

import csv
import json
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
    "seconds": "seconds.total",
}


def read_summary(sweep):
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_job(sweep, name, overrides, **outcome):
    """A job's folder; ``accuracy`` makes it finished, ``error`` failed, neither interrupted."""
    write_json(sweep / "sweep.json", {"swept": [], "command": outcome.get("command", 1)})
    folder = sweep / name
    folder.mkdir(parents=True)
    status = "finished" if "accuracy" in outcome else "failed" if "error" in outcome else "started"
    record = {
        "overrides": ["stage=lora", *overrides],
        "computes": {"config": " ".join(overrides), "base": outcome.get("base"), "adapter": None},
        "command": outcome.get("command", 1),
        "status": status,
        "error": outcome.get("error"),
    }
    (folder / "job.json").write_text(json.dumps(record))
    if "accuracy" in outcome:
        val = {"accuracy": outcome["accuracy"], "errors_of_target": 4, "errors_per_class": [3, 4]}
        test = {"errors_per_class": [3, 4], "images_per_class": [20, 20]}
        test |= {"false_calls_per_class": [4, 3]}
        results = {"classes": ["cat", "dog"], "targets": [], "val": val, "test": test}
        results["seconds"] = {"total": 1.25}
        (folder / "results.json").write_text(json.dumps(results | outcome.get("more", {})))
    return folder


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
