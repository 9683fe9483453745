"""The benchmark: how it compares, and that each row can be measured."""

import pytest
from helpers.commands import run_process
from run import Measured, Row, measure


@pytest.mark.parametrize(("unit", "ratio"), [("steps/s", "0.50"), ("s", "2.00")])
def test_a_ratio_above_one_is_faster(unit: str, ratio: str) -> None:
    row = Row("work", unit, "them", lambda: Measured(8, 30), lambda: Measured(4, 20))
    cells = f"| work | {unit} | them | 8.00 | 4.00 | {ratio} | 30 | 20 |"
    assert measure(row, rounds=1) == cells


def test_two_sides_take_turns_and_are_compared_round_by_round() -> None:
    asked = []

    def side(name: str, values: list[float]) -> Measured:
        asked.append(name)
        return Measured(values.pop(0), 1)

    theirs, ours = [1.0, 2.0, 4.0], [2.0, 8.0, 4.0]
    row = Row("w", "steps/s", "them", lambda: side("a", theirs), lambda: side("b", ours))
    assert "| 2.00 (1.00-4.00) | 4.00 (2.00-8.00) | 2.00 (1.00-4.00) |" in measure(row, rounds=3)
    assert asked == ["a", "b"] * 3


@pytest.mark.slow
def test_rows_are_measured() -> None:
    few = ("--rounds", "1", "--pictures", "400", "--workers", "1")
    done = run_process("scripts/benchmark/run.py", "--only", "folder", *few)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) >= 4
