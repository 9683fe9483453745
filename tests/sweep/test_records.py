from pathlib import Path

from helpers.sweeping import write_job
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist.sweep.records import natural, read_jobs


@given(st.lists(st.floats(allow_nan=False) | st.text()))
def test_numbers_sort_by_value_and_before_words(values: list[object]) -> None:
    ordered = sorted(map(str, values), key=natural)
    are_words = [natural(text)[0] for text in ordered]
    assert are_words == sorted(are_words)
    numbers = [float(text) for text in ordered[: are_words.count(False)]]
    assert numbers == sorted(numbers)


def test_a_key_that_was_not_set_has_its_configured_value(tmp_path: Path) -> None:
    """Another command on the same sweep has swept it."""
    (tmp_path / "notes").mkdir()  # no job
    first = write_job(tmp_path, "a", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b", ["lora.rank=1", "lora.alpha=4"], accuracy=0.5)
    write_job(tmp_path, "c", ["lora.rank=2"])
    (first / ".hydra").mkdir()
    (first / ".hydra" / "config.yaml").write_text("lora:\n  alpha: 1.0\n")
    swept = {job.folder: job.swept for job in read_jobs(tmp_path)}
    assert swept["a"] == {"lora.rank": "1", "lora.alpha": "1.0"}
    assert swept["c"] == {"lora.rank": "2", "lora.alpha": ""}


def test_failures_are_listed_until_they_are_made_good(tmp_path: Path) -> None:
    write_job(tmp_path, "a-1", ["lora.rank=1"], error="no such file")
    write_job(tmp_path, "a-2", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b-1", ["lora.rank=0"], error="expected an integer >= 1")
    states = {job.folder: job.status for job in read_jobs(tmp_path)}
    assert states == {"a-2": "finished", "b-1": "failed"}
