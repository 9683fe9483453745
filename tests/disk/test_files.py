import os

import pytest
from helpers.commands import run_process

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.resume import begin_run


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


WRITE_AND_DIE = """
import os, pathlib, signal, sys
from lora_mnist.disk.files import atomic_write
with atomic_write(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_is_gone_when_the_run_goes_on(tmp_path):
    own = tmp_path / "adapter" / ".notes.tmp.txt"
    own.parent.mkdir()
    own.touch()
    with pytest.raises(InterruptedError), begin_run(tmp_path, {}, None):
        run_process("-c", WRITE_AND_DIE, own.with_name("adapter_model.safetensors"))
        assert len(list(own.parent.iterdir())) == 2
        raise InterruptedError
    with begin_run(tmp_path, {}, "latest"):
        assert list(own.parent.iterdir()) == [own]
