import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_mnist.disk.files import atomic_write


def test_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for before, after in ((None, "first"), ("first", "second")):
        with atomic_write(path) as temporary:
            temporary.write_text(after)
            assert temporary.suffix == path.suffix
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (path, tmp_path / "plain")}
    assert len(modes) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["block", "touch", "open", "chmod", "replace", "fsync"])
def test_whatever_fails_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file.txt"
    path.write_text("before")
    with monkeypatch.context() as patched:
        if step != "block":
            patched.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:  # noqa: SIM117
            with atomic_write(path) as temporary:
                os.write(handle := os.open(temporary, os.O_WRONLY), b"after")
                os.close(handle)
                if step == "block":
                    fail()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import os, sys
from pathlib import Path
from lora_mnist.disk.files import atomic_write
with atomic_write(Path(sys.argv[1])) as path:
    path.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    (left,) = set(tmp_path.iterdir()) - {path}
    assert path.read_text() == "before"
    with atomic_write(tmp_path / "other.txt") as temporary:
        temporary.write_text("x")
    assert left.exists()  # somebody may still be writing it
    long_ago = time.time() - 25 * 60 * 60
    os.utime(left, (long_ago, long_ago))
    with atomic_write(tmp_path / "other.txt") as temporary:
        temporary.write_text("x")
    assert {file.name for file in tmp_path.iterdir()} == {"file.txt", "other.txt"}
