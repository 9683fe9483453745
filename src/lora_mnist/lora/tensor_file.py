"""The safetensors file of an adapter: the same bytes for the same tensors, and opened with care."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

WEIGHTS_NAME = "adapter_model.safetensors"
_LONGEST_HEADER = 4 * 2**20  # 20,000 layers


def packed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a file with ``tensors`` and ``metadata``, which depends on them alone.

    safetensors writes metadata in random order. The file begins with the length of its header,
    eight bytes, and the header, which is JSON.
    """
    file = save(tensors, metadata)
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return file[:8] + text.ljust(end - 8) + file[end:]


@contextmanager
def opened(folder: Path, most_bytes: int | None = None) -> Iterator[Any]:
    """The tensors of ``folder``, not yet read.

    Args:
        folder: of the adapter.
        most_bytes: how large the file may be, where its tensors are going to be read.

    Raises:
        ValueError: if the file cannot be opened or is too large, or what is read from it is
            damaged.
    """
    path = folder / WEIGHTS_NAME
    if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
        raise ValueError(
            f"{pickled.name} is a pickle, which can run code when it is loaded; expected "
            f"{WEIGHTS_NAME}, which PEFT writes with safe_serialization=True"
        )
    try:
        if not path.is_file():
            raise OSError("no such file")
        if most_bytes is not None and (size := path.stat().st_size) > most_bytes:
            raise OSError(f"{size} bytes are too many for the model's layers")
        with path.open("rb") as start:
            if int.from_bytes(start.read(8), "little") > _LONGEST_HEADER:
                raise OSError("its header is too long")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, MemoryError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error
