"""What a stranger's file of weights may do: hold weights, and else nothing that costs anything."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_mnist.weights_file import Limits, limits, read_weights_file

STATE = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
MOST = Limits(size=1_000_000, description=2_000)
#: What torch.save writes before and after the pickle of the content, until 2020.
OLD = (
    b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})),
    pickle.dumps([], 2),
)
#: ``bytearray(4_000_000_000)``
BYTEARRAY = (
    b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (4 * 10**9).to_bytes(5, "little") + b"\x85R."
)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(changes: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """STATE as torch.save writes it, with other parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as good, zipfile.ZipFile(buffer, "w") as bad:
        parts = {name: good.read(name) for name in good.namelist()}
        for name, content in {**parts, **changes}.items():
            bad.writestr(name, content, method)
    return buffer.getvalue()


def doubled(times: int) -> bytes:
    """The pickle of a dictionary with a tuple of twice a tuple of twice a tuple ... as its key."""
    again = b"".join(bytes([*b"h", i, *b"h", i, 0x86, *b"q", i + 1]) for i in range(times))
    return b"\x80\x02)q\x00" + again + b"}h" + bytes([times]) + b"K\x01s."


def nested(depth: int) -> bytes:
    """The pickle of a dictionary in a dictionary in a dictionary ..."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"}" + b"s" * depth + b"."


@pytest.mark.parametrize("check_sums", [True, False])
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_read(tmp_path: Path, new: bool, check_sums: bool) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": STATE, "n": [1]}, _use_new_zipfile_serialization=new))
    content = read_weights_file(path, MOST, check_sums)
    assert content["n"] == [1]
    assert all(torch.equal(content["model"][name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.pt")
    content = read_weights_file(tmp_path / "x.pt", MOST)
    assert all(torch.equal(content[name], STATE[name]) for name in STATE)


def test_limits_leave_room_for_an_optimizer() -> None:
    state = {str(i): torch.zeros(1000, 1000) for i in range(50)}
    most = limits(state)
    assert most.size >= 5 * 4 * 10**6 * len(state)
    assert most.description >= 3 * 200 * len(state)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (
        lambda: archive({"archive/data/0": bytes(90_000)}, zipfile.ZIP_DEFLATED),
        "compressed, which torch.save does not do",
    ),
    "large": (lambda: saved({"a": torch.zeros(500_000)}), "too large for the configured net"),
    "large in safetensors": (
        lambda: b"\x02\0\0\0\0\0\0\0{}" + bytes(1_000_000),
        "too large for the configured net",
    ),
    "expanded": (
        lambda: saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
        "holds a tensor too large for the configured net",
    ),
    "expanded within": (
        lambda: saved({"a": [{"b": (torch.zeros(1).expand(10**6, 10**6),)}]}),
        "holds a tensor too large for the configured net",
    ),
    "many values": (lambda: saved(dict.fromkeys(range(1000))), "holds too much beside"),
    "many values in the old format": (
        lambda: saved(dict.fromkeys(range(1000)), _use_new_zipfile_serialization=False),
        "holds too much beside",
    ),
    "a long name in the old format": (lambda: b"\x80\x02c" + b"x" * 50_000, "holds too much"),
    "another pickle": (lambda: archive({"ARCHIVE/DATA.PKL": bytes(3_000)}), "holds too much"),
    "deep": (lambda: archive({"archive/data.pkl": nested(10_000)}), "holds too much beside"),
    "many parts": (lambda: archive({str(i): b"" for i in range(4_000)}), "holds too much beside"),
    "a key that is long to look up": (
        lambda: archive({"archive/data.pkl": doubled(100)}),
        "holds too much beside",
    ),
    "the same in the old format": (lambda: OLD[0] + doubled(100) + OLD[1], "holds too much"),
    "bytearray": (lambda: archive({"archive/data.pkl": BYTEARRAY}), "holds a bytearray"),
    "bytearray in the old format": (lambda: OLD[0] + BYTEARRAY + OLD[1], "holds a bytearray"),
    "a long header": (lambda: (2**40).to_bytes(8, "little") + b"{}", "holds too much beside"),
    "a header that lies": (lambda: (50).to_bytes(8, "little") + b"{}", r"damaged \(Error while"),
    "nothing": (lambda: b"", r"damaged or something else \(ValueError\)"),
    "a zip archive": (lambda: b"PK\x03\x04", r"damaged or something else \(BadZipFile\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    (tmp_path / "x.pt").write_bytes(make())
    with pytest.raises(ValueError, match=f"^{message}.*expected the weights of"):
        read_weights_file(tmp_path / "x.pt", MOST)


def test_deep_and_endless_content_is_looked_through(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    itself: dict[str, Any] = {"a": torch.ones(1)}
    itself["b"] = [itself]
    path.write_bytes(saved(itself))
    assert read_weights_file(path, MOST)["a"] == 1
    path.write_bytes(archive({"archive/data.pkl": nested(10_000)}))
    assert read_weights_file(path, Limits(10**6, 10**6)).keys() == {"a"}


def test_a_pipe_does_not_keep_it_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="a pipe or a device; expected a file"):
        read_weights_file(tmp_path / "x.pt", MOST)
    with pytest.raises(IsADirectoryError):
        read_weights_file(tmp_path, MOST)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="a pipe or a device; expected a file"):
        read_weights_file(Path("/dev/zero"), MOST)


def test_a_flipped_bit_is_found_where_that_is_asked_for(tmp_path: Path) -> None:
    content = bytearray(saved(STATE))
    content[content.index(torch.tensor(5.0).numpy().tobytes())] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    found: dict[str, Tensor] = read_weights_file(tmp_path / "x.pt", MOST)
    assert not torch.equal(found["a"], STATE["a"])
    with pytest.raises(ValueError, match="wrong checksum of .*data"):
        read_weights_file(tmp_path / "x.pt", MOST, check_sums=True)
