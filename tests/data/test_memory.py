from pathlib import Path

import pytest

from lora_mnist.data import memory
from lora_mnist.data.memory import free_memory


def test_there_is_some_memory_on_this_machine() -> None:
    free = free_memory()
    assert free is None or 10**6 < free < 10**14


def test_the_smaller_of_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_the_machine", lambda: 7)
    monkeypatch.setattr(memory, "_of_the_container", lambda: 5)
    assert free_memory() == 5
    monkeypatch.setattr(memory, "_of_the_container", lambda: None)
    assert free_memory() == 7
    monkeypatch.setattr(memory, "_of_the_machine", lambda: None)
    assert free_memory() is None


@pytest.mark.parametrize(
    ("limit", "stat", "free"),
    [
        ("1000\n", "anon 300\nfile 600\n", 700),
        ("100\n", "anon 300\n", 0),
        ("max\n", "anon 3\n", None),
    ],
)
def test_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, stat: str, free: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.stat").write_text(stat)
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory._of_the_container() == free
