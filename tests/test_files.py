import errno
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_mnist.disk.files import atomic_write, read_json, sweep_up


def test_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with atomic_write(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def dead_process() -> int:
    """The number of a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def left_behind(folder: Path, process: int, host: str | None = None) -> Path:
    """What a writer leaves that dies on the way."""
    with atomic_write(folder / "file.txt") as temporary:
        name = temporary.name.replace(f"-{os.getpid()}-", f"-{process}-")
    if host is not None:
        name = name.replace(re.sub(r"\W", "", socket.gethostname()), host)
    path = folder / name
    path.write_text("half")
    return path


def test_what_the_dead_left_is_swept_up_by_the_next_writer(tmp_path: Path) -> None:
    dead = left_behind(tmp_path, dead_process())
    ours, parents = left_behind(tmp_path, os.getpid()), left_behind(tmp_path, os.getppid())
    (tmp_path / ".hidden.txt").touch()
    assert not dead.exists()  # the later writes have seen it
    with atomic_write(tmp_path / "other.txt") as temporary:
        temporary.write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(ours.name, parents.name),
        *(".hidden.txt", "file.txt", "other.txt"),
    }


def test_another_machines_writer_has_a_day(tmp_path: Path) -> None:
    path = left_behind(tmp_path, dead_process(), host="elsewhere")
    sweep_up(tmp_path)
    assert path.exists()
    long_ago = time.time() - 25 * 60 * 60
    os.utime(path, (long_ago, long_ago))
    sweep_up(tmp_path)
    assert not path.exists()


WRITER = """
import os, sys
from pathlib import Path
from lora_mnist.disk.files import atomic_write, sweep_up
with atomic_write(Path(sys.argv[1])) as path:
    path.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == "before"
    with atomic_write(path) as temporary:
        temporary.write_text("after")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["touch", "open", "chmod", "replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_whatever_fails_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file.txt"
    path.write_text("before")
    with monkeypatch.context() as patched:
        patched.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:  # noqa: SIM117
            with atomic_write(path) as temporary:
                os.write(handle := os.open(temporary, os.O_WRONLY), b"after")
                os.close(handle)
    assert caught.value.errno == number
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json(tmp_path / "a.json", most_bytes=23) == {"a": [1, {"b": None}]}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", most_bytes=22)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}' + " " * 200_000, "more than 100,000 bytes"),
        ("[" * 5_000 + "]" * 5_000, "nested too deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deep"),
        ("{", "Expecting property name"),
        ("9" * 5_000, "Exceeds the limit"),
    ],
)
def test_json_of_a_stranger_is_bounded(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json", most_bytes=100_000)


def test_json_from_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", tmp_path):
        with pytest.raises(ValueError, match="a folder, a pipe or a device"):
            read_json(path, most_bytes=100)
