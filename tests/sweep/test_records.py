import json
from pathlib import Path

import pytest
from helpers.sweeping import write_job
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.sweep.records import (
    flatten,
    is_finished,
    natural,
    read_job,
    read_jobs,
    read_results,
    write_record,
)


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3, "e": None}


@given(st.lists(st.floats() | st.text()))
def test_numbers_sort_by_value_and_before_words(values: list[object]) -> None:
    ordered = sorted(map(str, values), key=natural)
    are_words = [natural(text)[0] for text in ordered]
    assert are_words == sorted(are_words)
    numbers = [float(text) for text in ordered[: are_words.count(False)]]
    assert numbers == sorted(numbers)


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read_job(tmp_path) is None
    assert read_results(tmp_path) is None
    write_record(tmp_path, 2, ["a=1", "~b", "+c=d=e"], ["a"])
    job = read_job(tmp_path)
    assert job is not None
    assert (job.status, job.command, job.varied, job.error) == ("interrupted", 2, ["a"], None)
    assert job.settings() == {"a": "1", "b": "", "c": "d=e"}
    write_record(tmp_path, 2, ["a=1"], ["a"], error="no")
    (tmp_path / "results.json").write_text('{"val": 1}')  # left in its last line, but it failed
    failed = read_job(tmp_path)
    assert failed is not None
    assert (failed.status, failed.error, failed.results) == ("failed", "no", {})


@pytest.mark.parametrize("name", ["job.json", "results.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b"3", b"{}", b"null"])
def test_a_damaged_file_is_a_job_to_run_again(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_job(tmp_path, "a=1-0", ["a=1"], accuracy=0.5)
    assert is_finished(folder)
    (folder / name).write_bytes(content)
    assert not is_finished(folder)
    (job,) = read_jobs(tmp_path)
    assert (job.folder, job.status, job.error) == ("a=1-0", "damaged", f"{name} is damaged")


def test_a_record_without_a_key_is_damaged(tmp_path: Path) -> None:
    folder = write_job(tmp_path, "a", ["a=1"], accuracy=0.5)
    record = json.loads((folder / "job.json").read_text())
    for key in record:
        (folder / "job.json").write_text(json.dumps({k: record[k] for k in record if k != key}))
        assert not is_finished(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_what_is_no_number_ranks_no_job(tmp_path: Path, value: object) -> None:
    write_job(tmp_path, "a", ["a=1"], accuracy=value)
    (job,) = read_jobs(tmp_path)
    assert job.value("val.accuracy") is None


def test_what_is_no_job_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "summary.csv").touch()
    assert read_jobs(tmp_path) == []


def test_a_key_that_was_not_set_has_its_configured_value(tmp_path: Path) -> None:
    """Another command on the same sweep has swept it."""
    first = write_job(tmp_path, "a", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b", ["lora.rank=1", "lora.alpha=4"], accuracy=0.5)
    killed = write_job(tmp_path, "c", ["lora.rank=2"])
    for folder, text in ((first, "lora:\n  alpha: 1.0\n"), (killed, "lora: {alpha")):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(text)
    swept = {job.folder: job.swept for job in read_jobs(tmp_path)}
    assert swept["a"] == {"lora.rank": "1", "lora.alpha": "1.0"}
    assert swept["c"] == {"lora.rank": "2", "lora.alpha": ""}


def test_failures_are_listed_until_they_are_made_good(tmp_path: Path) -> None:
    write_job(tmp_path, "a-1", ["lora.rank=1"], error="no such file")
    write_job(tmp_path, "a-2", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b-1", ["lora.rank=0"], error="expected an integer >= 1")
    found = {job.folder: job.status for job in read_jobs(tmp_path)}
    assert found == {"a-2": "finished", "b-1": "failed"}
