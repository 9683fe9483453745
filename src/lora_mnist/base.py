"""Bases on disk: read anybody's weights, write ours, find one by its SHA-256.

A base is the ``state_dict`` of a pretrained network, buffers included. Its identity is the SHA-256
of its tensors (:func:`lora_mnist.lora.fingerprint`). Each base that is made here keeps a file of
its own, ``<name>-<first 12 digits of its SHA-256>.ckpt``; ``<name>.ckpt`` is the current one.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_mnist.files import atomic_write
from lora_mnist.lora import fingerprint

log = logging.getLogger(__name__)
_info = rank_zero_only(log.info)

#: Where training scripts put the ``state_dict`` in what they save.
_HOLDERS = ("state_dict", "model_state_dict", "model")


class Base(NamedTuple):
    """A pretrained network.

    Attributes:
        tensors: its ``state_dict``.
        sha256: fingerprint of the tensors, in hexadecimal.
    """

    tensors: Mapping[str, Tensor]
    sha256: str


def read_base(path: Path, net: nn.Module) -> Base:
    """Load the weights in ``path`` into ``net``.

    Accepted are a ``state_dict`` saved with ``torch.save``, a dictionary or a Lightning checkpoint
    that holds one, and safetensors. A prefix that all names share, such as ``module.``, is dropped.
    Nothing is unpickled but plain values and tensors. Another precision than that of ``net``, such
    as half, is converted, and the log says so.

    Args:
        path: the file.
        net: the network that the weights belong to; changed in place.

    Returns:
        The tensors, by the names that ``net`` has for them.

    Raises:
        ValueError: if the file holds no weights, or weights that do not fit ``net``.
        OSError: if the file cannot be read.
    """
    stat = path.stat()
    stored = _read_tensors(path, stat.st_mtime_ns, stat.st_size)
    prefix = _common_prefix(stored, net.state_dict())
    tensors = _fit(stored, net.state_dict(), prefix)
    net.load_state_dict(tensors)
    others = [(stored[prefix + name].dtype, tensor.dtype) for name, tensor in tensors.items()]
    for found, kept in sorted({pair for pair in others if pair[0] != pair[1]}, key=str):
        _info(
            "%s: %d of %d tensors are %s, and were converted to %s",
            *(path, others.count((found, kept)), len(tensors), found, kept),
        )
    return Base(tensors, fingerprint(tensors))


@lru_cache(maxsize=1)
def _read_tensors(path: Path, mtime_ns: int, size: int) -> Mapping[str, Tensor]:
    """The tensors in a file; kept until another is read, since the jobs of a sweep share a base."""
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except SafetensorError as error:
        raise ValueError(f"damaged ({error}); expected the weights of a network") from error
    except Exception as error:  # torch.load has no common class for what a damaged file causes
        raise ValueError(
            f"damaged or something else ({type(error).__name__}); expected the weights of a "
            "network, as torch.save(net.state_dict(), ...) or safetensors writes them"
        ) from error
    return _find_tensors(content)


def _find_tensors(content: Any) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}; expected a state_dict")
    for key in _HOLDERS:
        if isinstance(content.get(key), Mapping):
            return _find_tensors(content[key])
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        found = ", ".join(map(str, list(content)[:3])) or "nothing"
        raise ValueError(f"holds no tensors but {found}; expected a state_dict")
    return tensors


def _fit(
    stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """The stored tensors under the names of ``expected``, once all were found to fit."""
    found = {k.removeprefix(prefix): t for k, t in stored.items() if k.startswith(prefix)}
    missing = [name for name in expected if name not in found]
    # What stands outside a prefix belongs to something else, such as a metric or a teacher.
    unexpected = [name for name in found if name not in expected]
    others = [
        f"{name} {_shape(found[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    problems = [
        _first_three(kind, names)
        for kind, names in {
            "missing": missing,
            "unexpected": unexpected,
            "of another shape": others,
        }.items()
        if names
    ]
    if problems:
        names = f"{len(expected)} tensors such as {next(iter(expected))}"
        raise ValueError(f"{'; '.join(problems)}; expected the {names} of the configured net")
    return {name: _checked(name, found[name], expected[name]) for name in expected}


def _common_prefix(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What the stored names have in front of the expected ones: where most of these are found."""
    prefixes = {""}
    for key in stored:
        parts = key.split(".")[:-1]
        prefixes |= {".".join([*parts[:depth], ""]) for depth in (1, 2, 3) if depth <= len(parts)}
    return max(sorted(prefixes), key=lambda p: sum(p + name in stored for name in expected))


def _first_three(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind}: {', '.join(names[:3])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _checked(name: str, tensor: Tensor, expected: Tensor) -> Tensor:
    """``tensor`` in the dtype of ``expected``, finite."""
    if tensor.dtype != expected.dtype:
        # With the rest a counter may have become half precision; no weight was an integer.
        is_whole = torch.equal(tensor, tensor.trunc()) and not expected.is_floating_point()
        if tensor.is_floating_point() != expected.is_floating_point() and not is_whole:
            raise ValueError(f"{name} holds {tensor.dtype}; expected {expected.dtype}")
        tensor = tensor.to(expected.dtype)
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    return tensor


def write_base(tensors: Mapping[str, Tensor], folder: Path, name: str, current: Path) -> Path:
    """Keep a base for good, and make it the current one.

    Args:
        tensors: its ``state_dict``.
        folder: where every base keeps a file of its own.
        name: what the file's name begins with.
        current: the file to replace, at once and whole.

    Returns:
        The base's own file.

    Raises:
        OSError: if a file cannot be written.
    """
    sha256 = fingerprint(tensors)
    # A buffer has no name: torch.save would write that of a file into it. So equal tensors give
    # equal files.
    buffer = BytesIO()
    torch.save({"state_dict": {k: t.detach().cpu().clone() for k, t in tensors.items()}}, buffer)
    own = own_file(folder, name, sha256)
    for path in (own, current):
        if path != own or not own.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
    return own


def own_file(folder: Path, name: str, sha256: str) -> Path:
    """The file that a base keeps for good."""
    return folder / f"{name}-{sha256[:12]}.ckpt"


def find_base(folder: Path, sha256: str) -> Path | None:
    """The file in ``folder`` of the base with this fingerprint."""
    return next(iter(sorted(folder.glob(f"*-{sha256[:12]}.ckpt"))), None)
