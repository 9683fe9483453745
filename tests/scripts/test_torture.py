"""What the project promises, tried hard in short; and what the long tries are made of."""

import os
from functools import partial
from pathlib import Path

import pytest
from helpers.commands import run_process
from torture.cases import COMMANDS, MENDED, VALUES, Case, cases, keys_of
from torture.left import difference
from torture.report import Row, markdown
from torture.run import KINDS
from torture.small import temporary_files, unreadable, with_defaults
from torture.writes import at_write


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str) -> None:
    done = run_process("scripts/torture/run.py", "--quick", "--only", kind)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.endswith("| 0 |")]
    assert rows
    assert len(rows) == len(done.stdout.splitlines()) - 2  # but for the table's head


def test_the_table() -> None:
    assert markdown([Row("a fault", 1200, 1)]).splitlines()[-1] == "| a fault | 1,200 | 1,199 | 1 |"


def test_every_key_is_tried_with_values_that_the_seed_decides() -> None:
    chosen = cases(seed=0, per_key=2)
    assert chosen == cases(seed=0, per_key=2) != cases(seed=1, per_key=2)
    tried = {(case.name, case.key) for case in chosen}
    assert tried == {(name, key) for name in COMMANDS for key in keys_of(name)}
    assert ("pretrain", "data.std") in tried
    assert ("lora", "lora.rank") in tried
    assert ("lora", "+trainer.precision") in tried
    assert len(VALUES) == len(set(VALUES))


def test_what_was_mended_are_cases() -> None:
    for case in MENDED:
        assert case.key in keys_of(case.name)


def test_an_odd_value_takes_the_place_of_a_usual_one() -> None:
    case = Case("report", "paths.outputs", "nan")
    assert case.arguments(("paths.outputs=outputs",)) == ["paths.outputs=nan"]
    assert with_defaults(["-m", "a=1"], ["a=2", "b=3"]) == ["-m", "a=1", "b=3"]


def test_a_fault_comes_at_the_write_that_is_meant(tmp_path: Path) -> None:
    """In a fork: an audit hook stays for good."""
    child = os.fork()
    if child == 0:
        try:
            at_write(3, partial(_stop, tmp_path), tmp_path)
            (tmp_path / "one").write_text("1")
            (tmp_path / "one").read_text()  # reading does not count
            (tmp_path / "two").mkdir()
            (tmp_path / "one").rename(tmp_path / "three")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def _stop(folder: Path, event: str, path: str) -> None:
    os._exit(5 if (event, path) == ("os.rename", str(folder / "one")) else 6)


def test_what_differs_is_told() -> None:
    assert difference({"a": 1}, {"a": 1}) is None
    assert difference({"a": 1}, {"a": 2, "b": 1}) == "2 differ, a: 1 instead of 2"


def test_half_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert unreadable(tmp_path) is None
    (tmp_path / "adapter.safetensors").write_text("half")
    assert str(unreadable(tmp_path)).startswith("adapter.safetensors: ")
    assert temporary_files(tmp_path) == []
    left = tmp_path / f".results.host-1-{'0' * 8}.tmp.json"
    left.touch()
    assert temporary_files(tmp_path) == [left]
