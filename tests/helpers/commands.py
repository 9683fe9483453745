"""Commands in a process of their own, their answers, and the folders of their runs."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_mnist.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """A command's answer: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def ok(self):
        assert self.code == 0, self.err
        return self


def run_process(*command, **environment):
    """A Python script of the project in a process of its own."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def split_cells(text):
    """The rows of a table as they are printed, without the lines between them."""
    rows = (line.replace("┃", "│").split("│")[1:-1] for line in text.splitlines())
    return [[cell.strip() for cell in row] for row in rows if row]


def list_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only_run(outputs, stage):
    (folder,) = (outputs / stage).iterdir()
    return folder


def refused(function, *arguments, **named):
    """The one line of the UserError that ``function`` raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)
