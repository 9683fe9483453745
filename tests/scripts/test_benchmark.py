"""The benchmark: how it compares, and that its rows can be measured."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import run as benchmark
from helpers.commands import ROOT
from run import Benchmark, Measured, Row, measure

#: Where more is faster, and where less is.
RATIOS = {"steps/s": "2.00 (1.00-4.00)", "s": "0.50 (0.25-1.00)"}


@pytest.mark.parametrize(("unit", "ratio"), RATIOS.items())
def test_two_sides_take_turns_and_a_ratio_above_one_is_faster(unit: str, ratio: str) -> None:
    asked = []

    def side(name: str, values: list[float]) -> Measured:
        asked.append(name)
        return Measured(values.pop(0), 1)

    theirs, ours = [1.0, 2.0, 4.0], [2.0, 8.0, 4.0]
    row = Row("w", unit, "them", lambda: side("a", theirs), lambda: side("b", ours))
    assert f"| 2.00 (1.00-4.00) | 4.00 (2.00-8.00) | {ratio} |" in measure(row, rounds=3)
    assert asked == ["a", "b"] * 3


def test_a_process_is_measured() -> None:
    value, memory = benchmark.run("-c 'print(\"measured: 3\")'")
    assert (value, memory > 1) == (3, True)
    assert 0 < benchmark.run("-c pass").value < 3
    with pytest.raises(SystemExit, match="no-such-file"):
        benchmark.run("no-such-file.py")


@pytest.mark.slow
def test_rows_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a folder, their commands in this process."""
    measured = []

    def run(command: str) -> Measured:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        found = re.search(r"measured: (.+)", printed.getvalue())
        measured.append(found is not None)
        return Measured(float(found[1]) if found else 1, 1)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "run", run)
    small = Benchmark(tmp_path, quick=True)
    small.pictures = 250
    for row in small.photos():
        assert re.fullmatch(r"(\| .+ ){6}\| 1 \| 1 \|", measure(row, rounds=1))
    assert measured == [True] * 6
