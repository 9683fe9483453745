"""The benchmark: how it compares, and that its rows can be measured."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout, suppress

import pytest
import run as benchmark
from helpers.commands import ROOT
from run import Benchmark, Row, measure

#: Where more is faster, and where less is.
RATIOS = {"steps/s": "2.00 (1.00-4.00)", "s": "0.50 (0.25-1.00)"}


@pytest.mark.parametrize(("unit", "ratio"), RATIOS.items())
def test_two_sides_take_turns_and_a_ratio_above_one_is_faster(monkeypatch, unit, ratio):
    commands = []
    values = {"a": [1.0, 2.0, 4.0], "b": [2.0, 8.0, 4.0]}

    memory = {"a": 300, "b": 350}

    def run(command):
        commands.append(command)
        return values[command].pop(0), memory[command]

    monkeypatch.setattr(benchmark, "run", run)
    cells = f"| 2.00 (1.00-4.00) | 4.00 (2.00-8.00) | {ratio} | +50 MB |"
    assert cells in measure(Row("w", unit, "them", "a", "b"), rounds=3)
    assert commands == ["a", "b"] * 3


@pytest.mark.slow
def test_rows_are_measured(tmp_path, monkeypatch):
    measured = []

    def run(command):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        measured.append(re.search(r"measured: (.+)", printed.getvalue()))
        return float(measured[-1][1]) if measured[-1] else 1, 0

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "run", run)
    small = Benchmark(tmp_path, quick=True)
    small.pictures = 250
    for row in small.photos():
        assert re.fullmatch(r"(\| .+ ){7}\|", measure(row, rounds=1))
    assert len(measured) == 6
    assert all(measured)
