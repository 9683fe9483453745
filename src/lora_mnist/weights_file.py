"""Files of weights from anybody: measured before they are read, and nothing in them runs.

``torch.load`` with ``weights_only=True`` runs no code. But a small file may unfold to gigabytes, or
keep the reader busy for hours. So a file is held against the network that it should belong to.
"""

import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

#: Room for what training scripts save beside a network: an optimiser's state, a teacher, metrics.
_MORE_BYTES, _TIMES = 256 << 20, 20
#: A tensor takes about 100 bytes of description. Python reads a megabyte of it in a second or more.
_MORE_DESCRIPTION, _A_TENSOR = 512 << 10, 1 << 10
#: An archive ends with its list of contents, before which zipfile looks for a comment.
_LONGEST_COMMENT = 1 << 17
#: Values in tuples; a generator of random numbers has 625.
_MOST_IN_TUPLES = 1_000_000
#: Pickles at the start of what torch.save wrote until 2020.
_OLD_PICKLES = 5
_ALONE = "expected the weights of the net alone, as torch.save(net.state_dict(), ...) writes them"


class Limits(NamedTuple):
    """How much a file may hold.

    Attributes:
        size: bytes of all that is in it.
        description: bytes that say which tensors and other values are in it.
    """

    size: int
    description: int


def limits(tensors: Mapping[str, Tensor]) -> Limits:
    """What a file may hold that belongs to a network with ``tensors``."""
    return Limits(
        _MORE_BYTES + _TIMES * sum(tensor.nbytes for tensor in tensors.values()),
        _MORE_DESCRIPTION + _A_TENSOR * len(tensors),
    )


class _RefusedError(ValueError):
    """Why a file is not read."""


def read_weights_file(path: Path, most: Limits, check_sums: bool = False) -> Any:
    """What ``torch.save`` or safetensors has written to ``path``: plain values and tensors.

    Args:
        path: the file.
        most: how much it may hold.
        check_sums: compare each part of an archive with its checksum. Some programs write none
            that is right.

    Raises:
        ValueError: if it is damaged, something else or too large.
        OSError: if it cannot be opened.
    """
    if not path.is_file() and path.exists() and not path.is_dir():
        raise ValueError("a pipe or a device; expected a file")  # it could keep us waiting
    with path.open("rb") as file:
        start = file.read(9)
    try:
        return _read(path, start, most, check_sums)
    except _RefusedError:
        raise
    except SafetensorError as error:
        raise ValueError(f"damaged ({error}); expected the weights of a network") from error
    except Exception as error:  # torch.load has no common class for what a damaged file causes
        raise ValueError(
            f"damaged or something else ({type(error).__name__}); expected the weights of a "
            "network, as torch.save(net.state_dict(), ...) or safetensors writes them"
        ) from error


def _read(path: Path, start: bytes, most: Limits, check_sums: bool) -> Any:
    size = path.stat().st_size
    if size > most.size:
        megabytes = f"{size / 1e6:,.0f} MB, more than {most.size / 1e6:,.0f}"
        raise _RefusedError(f"too large for the configured net ({megabytes}); {_ALONE}")
    if start[8:] == b"{":
        _require_short(int.from_bytes(start[:8], "little"), most)
        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch.load only wonders at is refused later
        if start.startswith(b"PK"):
            _check_archive(path, size, most, check_sums)
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:  # as torch.save wrote until 2020
            with _Bounded(path, most.description) as stream:
                for _ in range(_OLD_PICKLES):
                    _check_pickle(stream)
            with _Bounded(path, most.description) as stream:
                content = torch.load(stream, map_location="cpu", weights_only=True)
    for tensor in _tensors_in(content):
        if tensor.numel() * tensor.element_size() > most.size:  # one number may stand for billions
            raise _RefusedError(f"holds a tensor too large for the configured net; {_ALONE}")
    return content


def _require_short(description: int, most: Limits) -> None:
    if description > most.description:
        raise _RefusedError(f"holds too much beside the weights; {_ALONE}")


def _check_archive(path: Path, size: int, most: Limits, check_sums: bool) -> None:
    """Refuse an archive that would unfold to more than its size, or takes long to look through."""
    with _Bounded(path, most.description + _LONGEST_COMMENT) as file, zipfile.ZipFile(file) as ends:
        parts = ends.infolist()
    if sum(part.file_size for part in parts) > size:
        raise _RefusedError(f"compressed, which torch.save does not do; {_ALONE}")
    with zipfile.ZipFile(path) as archive:
        for part in parts:
            if part.filename.lower().endswith(".pkl"):
                _require_short(part.file_size, most)
                _check_pickle(BytesIO(archive.read(part)))
        if check_sums and (damaged := archive.testzip()) is not None:
            raise _RefusedError(f"damaged (wrong checksum of {damaged})")


def _check_pickle(file: IO[bytes]) -> None:
    """Refuse the two things that torch.load allows and that may cost more than they look.

    A bytearray is made as large as the pickle says. And a tuple of twice the same tuple of twice
    the same one, and so on, is short to write, but takes for ever to look up in a dictionary.
    """
    sizes: list[int] = []  # of all on the stack, what is in tuples counted as often as it is there
    marks: list[int] = []
    memo: dict[Any, int] = {}
    total = 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise _RefusedError(f"holds a bytearray; {_ALONE}")
        if opcode.name == "MARK":
            marks.append(len(sizes))
            continue
        start, before = len(sizes), opcode.stack_before
        if pickletools.markobject in before:
            start, before = marks.pop(), before[: before.index(pickletools.markobject)]
        start -= len(before)
        taken, sizes[start:] = sizes[start:], []
        size = 1
        if "TUPLE" in opcode.name:
            size += sum(taken)
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            size = memo[argument]
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = sizes[-1]
        sizes += [size] * len(opcode.stack_after)
        total += size - 1
        if total > _MOST_IN_TUPLES:
            raise _RefusedError(f"holds too much beside the weights; {_ALONE}")


class _Bounded(BufferedReader):
    """A file of which Python code may read so many bytes, and no more."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path.open("rb", buffering=0))
        self._left = most

    def read(self, size: int | None = -1, /) -> bytes:
        most = self._left + 1
        return self._counted(super().read(most if size is None or size < 0 else min(size, most)))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(self._left + 1))

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise _RefusedError(f"holds too much beside the weights; {_ALONE}")
        return content


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """The plain tensors in nested dictionaries and lists, which may hold themselves."""
    seen, left = set(), [content]
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if found.layout == torch.strided and not found.is_nested:
                yield found
        elif isinstance(found, Mapping):
            left += found.values()
        elif isinstance(found, list | tuple):
            left += found
