from pathlib import Path

import pytest

from lora_mnist.errors import UserError
from lora_mnist.runs import RunRecord, find_run, flat, read_run, write_run

RECORD = RunRecord({"seed": 0, "lora.rank": 4}, finished=False)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_run(tmp_path, RECORD)
    assert read_run(tmp_path) == RECORD
    write_run(tmp_path, RECORD._replace(finished=True))
    assert read_run(tmp_path).finished
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"settings": [], "finished": true}', '{"settings": {}}'),
        *("[" * 10_000, '{"settings":' * 10_000 + "1" + "}" * 10_000, "[]" + " " * 5_000_000),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, RECORD)
    (tmp_path / "checkpoints" / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run.json: damaged; expected the record of a run"):
        read_run(tmp_path)


def test_a_run_is_found_by_its_folder_or_as_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("2026-01-01", "2026-01-02"):
        write_run(tmp_path / name, RECORD)
    (tmp_path / "2026-01-03" / "checkpoints").mkdir(parents=True)  # died before it trained
    assert find_run("latest", tmp_path) == tmp_path / "2026-01-02"
    assert find_run(str(tmp_path / "2026-01-01"), tmp_path) == tmp_path / "2026-01-01"
    monkeypatch.chdir(tmp_path)
    assert find_run("2026-01-01", tmp_path / "elsewhere") == tmp_path / "2026-01-01"


@pytest.mark.parametrize("resume", ["nowhere", "2026-01-03", 7])
def test_what_is_no_run_is_refused(tmp_path: Path, resume: object) -> None:
    (tmp_path / "2026-01-03").mkdir()
    with pytest.raises(UserError, match=f"^resume={resume}: no run that can be gone on with"):
        find_run(resume, tmp_path)
    with pytest.raises(UserError, match="^resume=latest: expected a run in .*, found none"):
        find_run("latest", tmp_path)


def test_settings_by_key() -> None:
    nested = {"a": {"b": 1, "c": (2, 3)}, "d": {}, "e": None, "f": Path("/x")}
    assert flat(nested) == {"a.b": 1, "a.c": [2, 3], "d": {}, "e": None, "f": "/x"}
