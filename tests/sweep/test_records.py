"""Records and results on disk: whole, missing, damaged."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeping import write_job

from lora_mnist.sweep.records import (
    DamagedError,
    Record,
    flatten,
    is_finished,
    natural,
    read_record,
    read_results,
    read_rows,
)

RECORD = {"number": 0, "command": 1, "overrides": ["a=1"], "varied": ["a"], "error": None}


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3, "e": None}


def test_numbers_sort_by_value_and_before_words() -> None:
    assert sorted(["b", "10", "nan", "9", "1e-3", "a"], key=natural) == [
        *("1e-3", "9", "10"),
        *("a", "b", "nan"),
    ]


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert read_results(tmp_path) is None
    record = Record(number=3, command=2, overrides=["a=1", "~b"], varied=["a"], error="no")
    record.write(tmp_path)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"3",
        b"{}",
        b"[" * 10_000,
        json.dumps(RECORD).encode() + b" " * 100_000,
        json.dumps(RECORD | {"more": 0}).replace("0}", "[" * 100 + "]" * 100 + "}").encode(),
        *(json.dumps({k: v for k, v in RECORD.items() if k != key}).encode() for key in RECORD),
        *(
            json.dumps(RECORD | wrong).encode()
            for wrong in (
                {"number": "0"},
                {"command": None},
                {"overrides": "a=1"},
                {"overrides": [1]},
                {"varied": None},
                {"error": 3},
            )
        ),
    ],
)
def test_a_damaged_record_is_a_job_to_run_again(tmp_path: Path, content: bytes) -> None:
    folder = write_job(tmp_path, "a=1-0", ["a=1"], accuracy=0.5)
    assert is_finished(folder)
    (folder / "job.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"^job\.json is damaged"):
        read_record(folder)
    assert not is_finished(folder)
    (row,) = read_rows(tmp_path)
    assert (row.folder, row.status, row.command) == ("a=1-0", "damaged", None)
    assert str(row.error).startswith("job.json is damaged")


@pytest.mark.parametrize(
    "content", ["", '{"val": {"accu', "[1]", "null", "{}", '"text"', "[" * 10_000, " " * 3_000_000]
)
def test_damaged_results_are_a_job_to_run_again(tmp_path: Path, content: str) -> None:
    folder = write_job(tmp_path, "a=1-0", ["a=1"], accuracy=0.5)
    (folder / "results.json").write_text(content)
    assert not is_finished(folder)
    (row,) = read_rows(tmp_path)
    assert (row.status, row.error, row.results) == ("damaged", "results.json is damaged", {})
    assert row.overrides == {"stage": "lora", "a": "1"}


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    folder = write_job(tmp_path, "a=1-0", ["a=1"])
    (folder / "results.json").mkdir()
    assert [row.status for row in read_rows(tmp_path)] == ["damaged"]


@pytest.mark.parametrize("name", ["job.json", "results.json"])
def test_a_pipe_in_the_place_of_a_file_is_damage(tmp_path: Path, name: str) -> None:
    folder = write_job(tmp_path, "a=1-0", ["a=1"], accuracy=0.5)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert [row.status for row in read_rows(tmp_path)] == ["damaged"]


@pytest.mark.parametrize("name", ["job.json", "results.json"])
def test_a_hundred_damages_end_no_summary(tmp_path: Path, name: str) -> None:
    """A job that is torn is damaged; one that reads well is what it says."""
    folder = write_job(tmp_path, "a=1-0", ["a=1"], accuracy=0.5)
    whole = (folder / name).read_bytes()
    draw = random.Random(0)
    statuses = set()
    for _ in range(100):
        torn = bytearray(whole[: draw.randrange(1, len(whole) + 1)])
        for _ in range(draw.randrange(3)):
            torn[draw.randrange(len(torn))] = draw.randrange(256)
        (folder / name).write_bytes(torn)
        (row,) = read_rows(tmp_path)
        assert is_finished(folder) == (row.status == "finished")
        assert (row.status == "damaged") == str(row.error).startswith(f"{name} is damaged")
        statuses.add(row.status)
    assert "damaged" in statuses


def test_what_is_shown_can_be_printed_and_is_short(tmp_path: Path) -> None:
    write_job(
        *(tmp_path, "a", ["a=\x1b[2J" + "9" * 1000]),
        accuracy=0.5,
        more={"note": "\x1b[2J" * 100, "\x1b[2J": 1},
    )
    write_job(tmp_path, "b", ["a=\ud800"], error="\x1b[2J\n" * 5000)
    for row in read_rows(tmp_path):
        texts = [*row.swept, *row.swept.values(), str(row.error), *row.results]
        texts += [value for value in row.results.values() if isinstance(value, str)]
        assert all(text.isprintable() and len(text) < 2100 for text in texts)
        assert len(row.swept["a"]) < 210


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1"])
def test_what_is_no_number_ranks_no_job(tmp_path: Path, value: Any) -> None:
    write_job(tmp_path, "a", ["a=1"], accuracy=value)
    (row,) = read_rows(tmp_path)
    assert row.value("val.accuracy") is None


ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nseed: *b\n"


@pytest.mark.parametrize(
    "config",
    [
        *("[" * 100_000, "- " * 5_000 + "a", ALIASES, "a: 1\n" * 100_000),
        *("seed: !!python/name:os.system", "seed: 0x" + "f" * 9_000, "[1]", "\0"),
    ],
)
def test_a_strangers_configuration_says_nothing(tmp_path: Path, config: str) -> None:
    write_job(tmp_path, "seed=0", ["seed=0"], accuracy=0.5)
    torn = write_job(tmp_path, "seed=2", ["seed=2"])
    (torn / "job.json").write_text("{")
    (torn / ".hydra").mkdir()
    (torn / ".hydra" / "config.yaml").write_text(config)
    rows = {row.folder: row for row in read_rows(tmp_path)}
    assert rows["seed=2"].swept == {"seed": ""}


def test_who_failed_is_not_finished_whatever_it_left(tmp_path: Path) -> None:
    folder = write_job(tmp_path, "a", ["a=1"], accuracy=0.5, error="failed in its last line")
    assert not is_finished(folder)
    (row,) = read_rows(tmp_path)
    assert (row.status, row.results) == ("failed", {})


def test_what_is_no_job_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "summary.csv").touch()
    assert read_rows(tmp_path) == []


def test_a_damaged_job_makes_no_key_a_swept_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path, f"seed={seed}", [f"seed={seed}"], accuracy=0.5)
    torn = write_job(tmp_path, "seed=2", ["seed=2"])
    (torn / "job.json").write_text("{")
    (torn / ".hydra").mkdir()
    (torn / ".hydra" / "config.yaml").write_text("seed: 2\n")
    rows = {row.folder: row for row in read_rows(tmp_path)}
    assert rows["seed=2"].swept == {"seed": "2"}
    assert rows["seed=0"].swept == {"seed": "0"}


def test_a_key_that_was_not_set_has_its_configured_value(tmp_path: Path) -> None:
    first = write_job(tmp_path, "a", ["lora.rank=1"], accuracy=0.5)
    (first / ".hydra").mkdir()
    (first / ".hydra" / "config.yaml").write_text("lora:\n  alpha: 1.0\n")
    write_job(tmp_path, "b", ["lora.rank=1", "lora.alpha=4"], accuracy=0.5)
    killed = write_job(tmp_path, "c", ["lora.rank=2"])
    (killed / ".hydra").mkdir()
    (killed / ".hydra" / "config.yaml").write_text("lora: {alpha")
    swept = {row.folder: row.swept for row in read_rows(tmp_path)}
    assert swept["a"] == {"lora.rank": "1", "lora.alpha": "1.0"}
    assert swept["c"] == {"lora.rank": "2", "lora.alpha": ""}


def test_failures_are_listed_until_they_are_made_good(tmp_path: Path) -> None:
    write_job(tmp_path, "a-1", ["lora.rank=1"], error="no such file")
    write_job(tmp_path, "a-2", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b-1", ["lora.rank=0"], error="expected an integer >= 1")
    found: Any = {row.folder: row.status for row in read_rows(tmp_path)}
    assert found == {"a-2": "finished", "b-1": "failed"}
