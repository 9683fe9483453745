"""Helpers of the tests of sweeps."""

import os
import subprocess
import sys

from helpers.commands import ROOT
from lora_mnist.files import write_json

#: A command that sweeps and trains nothing.
TOY = "tests/helpers/toy.py"
#: The columns of the tests' tables, by the form of configs/sweep/columns/default.yaml.
COLUMNS = {
    "val_errors_on_target": "val.errors_of_target",
    "test_accuracy": "test.accuracy",
    "scale": "point.scale",
    "seconds": "seconds",
}


def write_job(sweep, name, overrides, **outcome):
    """A job's folder; ``accuracy`` makes it finished, ``error`` failed."""
    overrides = ["stage=lora", *overrides]
    if "error" in outcome:
        write_json(sweep / name / "failed.json", {"overrides": overrides, **outcome})
        return
    val = {"accuracy": outcome["accuracy"], "errors_of_target": 4}
    results = {"stage": "lora", "overrides": overrides, "val": val, "test": {}, "seconds": 1.25}
    write_json(sweep / name / "results.json", results | outcome.get("more", {}))


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
