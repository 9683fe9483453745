"""Printing to a screen that is gone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import ROOT
from helpers.sweeping import TOY, only_sweep, statuses

from lora_mnist.sweep.screen import say


def test_say(capsys: pytest.CaptureFixture[str]) -> None:
    say("here")
    say("there", to_stderr=True)
    assert capsys.readouterr() == ("here\n", "there\n")


@pytest.mark.slow
def test_who_stops_reading_stops_no_job(tmp_path: Path) -> None:
    command = f"{sys.executable} {TOY} -m x=1,2,3 paths.outputs={tmp_path}/outputs"
    done: Any = subprocess.run(
        ["bash", "-c", f"{command} | head -n 2; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert statuses(only_sweep(tmp_path)) == ["finished"] * 3
