"""Bases on disk: read anybody's weights, write ours, find one by its SHA-256.

A base is the ``state_dict`` of a pretrained network, buffers included. Its identity is the SHA-256
of its tensors (:func:`lora_mnist.lora.base_state`). Each base that is made here keeps a file of
its own, ``<name>-<first 12 digits of its SHA-256>.ckpt``; ``<name>.ckpt`` is the current one.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from lora_mnist.disk.files import atomic_write
from lora_mnist.lora import fingerprint
from lora_mnist.weights_file import Limits, limits, read_weights_file

log = logging.getLogger(__name__)
_info = rank_zero_only(log.info)

#: Where training scripts put the ``state_dict`` in what they save.
_HOLDERS = ("state_dict", "model_state_dict", "model")
#: How deep; a dictionary from a stranger may hold itself.
_DEPTH = 5


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
    expected = net.state_dict()
    stat = path.stat()
    stored = _read_tensors(path.resolve(), stat.st_mtime_ns, stat.st_size, limits(expected))
    prefix = _common_prefix(stored, expected)
    tensors = _fit(stored, expected, prefix)
    net.load_state_dict(tensors)
    others = [(stored[prefix + name].dtype, tensor.dtype) for name, tensor in tensors.items()]
    for found, kept in sorted({pair for pair in others if pair[0] != pair[1]}, key=str):
        _info(
            "%s: %d of %d tensors are %s, and were converted to %s",
            *(path, others.count((found, kept)), len(tensors), found, kept),
        )
    return Base(tensors, fingerprint(tensors))


@lru_cache(maxsize=1)
def _read_tensors(path: Path, mtime_ns: int, size: int, most: Limits) -> Mapping[str, Tensor]:
    """The tensors in a file; kept until another is read, since the jobs of a sweep share a base."""
    return _find_tensors(read_weights_file(path, most))


def _find_tensors(content: Any) -> Mapping[str, Tensor]:
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            raise ValueError(f"holds a {type(content).__name__}; expected a state_dict")
        inner = [content[key] for key in _HOLDERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
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
    for name, t in found.items():
        if t.layout != torch.strided or t.is_quantized or t.is_nested or t.is_meta:
            raise ValueError(
                f"{name} is sparse, quantized, nested or empty; expected plain numbers"
            )
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
        names = f"{len(expected)} tensors such as {next(iter(expected), 'none')}"
        raise ValueError(f"{'; '.join(problems)}; expected the {names} of the configured net")
    return {name: _checked(name, found[name], expected[name]) for name in expected}


def _common_prefix(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What the stored names have in front of the expected ones: where most of these are found."""
    found = Counter({"": 0})
    for key in stored:
        parts = key.split(".")
        for depth in range(min(4, len(parts))):
            prefix = ".".join([*parts[:depth], ""])
            found[prefix] += key.removeprefix(prefix) in expected
    return max(sorted(found), key=lambda prefix: found[prefix])


def _first_three(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{kind}: {', '.join(names[:3])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


@torch.no_grad()
def _checked(name: str, tensor: Tensor, expected: Tensor) -> Tensor:
    """``tensor`` in the dtype of ``expected`` and in memory of its own, finite."""
    message = f"{name} holds {tensor.dtype}; expected {expected.dtype}"
    if tensor.is_complex() != expected.is_complex():
        raise ValueError(message)
    if expected.is_floating_point() and not tensor.is_floating_point():
        raise ValueError(message)  # no weight was an integer
    found = torch.empty(expected.shape, dtype=expected.dtype).copy_(tensor)
    # With the rest a counter may have become half precision.
    is_count = not found.is_floating_point() and not found.is_complex()
    if is_count and not torch.equal(found.double(), tensor.double()):
        raise ValueError(message)
    if not found.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    return found


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
