import os

import pytest

from lora_mnist.disk.files import atomic_write


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    path = tmp_path / "new" / "file.txt"
    for before, after in ((None, "first"), ("first", "second")):
        with atomic_write(path) as temporary:
            temporary.write_text(after)
            assert temporary.suffix == path.suffix
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"), atomic_write(path) as temporary:
        temporary.write_text("third")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]
