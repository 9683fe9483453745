import os

import pytest

from lora_mnist.disk.files import atomic_write


def test_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for before, after in ((None, "first"), ("first", "second")):
        with atomic_write(path) as temporary:
            temporary.write_text(after)
            assert temporary.suffix == path.suffix
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
    assert list(path.parent.iterdir()) == [path]


def test_whatever_fails_the_old_file_stays(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "file.txt"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"), atomic_write(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
