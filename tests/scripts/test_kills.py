"""The script that kills runs: what it compares, and that it finds what is broken."""

import subprocess
import sys
from pathlib import Path

import pytest
from kills import Place, kill


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place in which nothing has run."""
    place = Place.__new__(Place)
    place.outputs = tmp_path
    place.run = tmp_path / "run"
    (place.run / "adapter").mkdir(parents=True)
    (place.run / "results.json").write_text('{"steps": 3, "seconds": {"fit": 0.5}}')
    (place.run / "adapter" / "adapter_config.json").write_text("{}")
    return place


def test_times_are_not_compared_and_everything_else_is(place: Place) -> None:
    (place.outputs / "base").mkdir()
    (place.outputs / "base" / "mnist.ckpt").write_bytes(b"base")
    expected = {"mnist.ckpt": b"base", ".": {"steps": 3}, "./adapter_config.json": b"{}"}
    assert place.left() == expected


@pytest.mark.parametrize("name", ["half.json", "half.ckpt", "half.safetensors", ".x-1.tmp.json"])
def test_half_a_file_is_found(place: Place, name: str) -> None:
    assert place.broken_file() is None
    (place.run / name).write_text("half")
    assert name in str(place.broken_file())


@pytest.mark.parametrize(("code", "killed"), [("while True: pass", True), ("pass", False)])
def test_a_kill(tmp_path: Path, code: str, killed: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert kill(process, tmp_path, 0.1 if killed else 60) == killed
