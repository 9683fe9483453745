"""Bases on disk: read anybody's weights, write ours, find one by its SHA-256.

A base is the ``state_dict`` of a pretrained network, buffers included. Its identity is the SHA-256
of its tensors. Each base that is made here keeps a file of its own, ``<name>-<first 12 digits of
its SHA-256>.ckpt``; ``<name>.ckpt`` is the current one.
"""

import logging
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError
from lora_mnist.lora.base_state import fingerprint

log = logging.getLogger(__name__)


class Base(NamedTuple):
    """A pretrained network: its ``state_dict`` and the SHA-256 of that in hexadecimal."""

    tensors: Mapping[str, Tensor]
    sha256: str
    is_pretrained_here: bool = False  # or somebody else's, of which we may keep a copy


class BaseFile(NamedTuple):
    """The content of a file of weights."""

    tensors: Mapping[str, Tensor]  # as they are named there
    record: Mapping[str, Any]  # see :mod:`.record`; empty in files that are not ours
    sha256: str | None  # what the base's SHA-256 should be; ``None`` in files that are not ours


def read_base(path: Path) -> BaseFile:
    """The weights in ``path``, and what else a base of ours has there.

    Accepted are a ``state_dict`` saved with ``torch.save``, a dictionary or a Lightning checkpoint
    that holds one, and safetensors. Only plain values and tensors are unpickled. ``ValueError``, if
    the file holds no weights; ``OSError``, if it cannot be read.
    """
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # after the length of the header: JSON
    content: Any
    try:
        if is_safetensors:
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither library has one class for what a damaged file causes
        types = []
        with suppress(Exception):  # what torch.save has not written
            types = sorted(get_unsafe_globals_in_checkpoint(path))
        reason = f"damaged or something else ({type(error).__name__})"
        if types:
            reason = f"holds {types[0]}, which is not loaded, since it could run code"
        raise ValueError(
            f"{reason}; expected weights alone, as torch.save(net.state_dict(), FILE) or "
            "safetensors writes them"
        ) from error
    record, sha256 = {}, None
    if isinstance(content, Mapping) and isinstance(content.get("record"), Mapping):
        record, sha256 = content["record"], content.get("sha256")
    # Keys under which scripts save the state_dict; the last is for one inside "model".
    content = _with_prefixes(content)
    for key in ("state_dict", "model_state_dict", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in entries if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"holds a {type(content).__name__} without tensors; expected a state_dict")
    return BaseFile(tensors, record, sha256)


def _with_prefixes(content: Any) -> Any:
    """The tensors of all networks in a dictionary that has several, such as ``state_dict_ema``.

    The names of those in an inner dictionary begin with its key. Another content stays as it is.
    """
    if not isinstance(content, Mapping):
        return content
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    inner = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values()):
            inner[key] = value
    if len(inner) + bool(tensors) < 2:
        return content
    for key, value in inner.items():
        tensors |= {f"{key}.{name}": each for name, each in value.items()}
    return tensors


def load_weights(net: nn.Module, file: BaseFile, prefix: str | None = None) -> Base:
    """Load the weights of a file into ``net``.

    A prefix of the names, such as ``module.``, is dropped, and so are tensors outside it, which
    belong to something else, such as a metric. Floating-point tensors of another precision are
    converted to that of ``net``. The returned tensors share no memory with it. ``ValueError``, if
    the weights do not fit ``net``, or the file has several networks of which ``prefix`` names none.
    """
    stored, own = file.tensors, net.state_dict()
    first = next(iter(own), "")
    prefixes = [name.removesuffix(first) for name in stored if f".{name}".endswith(f".{first}")]
    if prefix is None:
        whole = [each for each in prefixes if all(f"{each}{name}" in stored for name in own)]
        if len(whole) > 1:
            names = ", ".join(each or "''" for each in whole)
            raise ValueError(f"holds {len(whole)} networks; expected base_prefix= one of {names}")
        prefix = min(whole or prefixes, key=len, default="")
    elif prefix not in prefixes:
        raise ValueError(f"base_prefix={prefix}: expected one of {', '.join(prefixes) or 'none'}")
    inner = tuple(each for each in prefixes if each != prefix and each.startswith(prefix))
    chosen = {}
    for name, tensor in stored.items():
        if name.startswith(prefix) and not name.startswith(inner):
            chosen[name.removeprefix(prefix)] = tensor
    for name, tensor in chosen.items():
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; expected floating-point numbers")
    try:
        net.load_state_dict(chosen)
    except RuntimeError as error:  # torch names every tensor that does not fit
        reason = textwrap.shorten(str(error), 400).rstrip(".")
        raise ValueError(f"{reason}; expected the tensors of the configured net") from error
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    stage = file.record.get("made", {}).get("stage")
    return Base(tensors, fingerprint(tensors), stage == "pretrain")


def write_base(
    tensors: Mapping[str, Tensor], path: Path, record: Mapping[str, Any] | None = None
) -> None:
    """Write a base, whole or not at all; equal arguments give equal files."""
    # A clone does not take along other tensors that share the memory.
    state = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    content = {"state_dict": state, "record": dict(record or {}), "sha256": fingerprint(state)}
    buffer = BytesIO()  # torch.save would write a file's name into it
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def versioned_base_path(folder: Path, name: str, sha256: str) -> Path:
    """The file in which a base stays for good."""
    return folder / f"{name}-{sha256[:12]}.ckpt"


def find_base(folder: Path, sha256: str) -> Path | None:
    """The file in ``folder`` of the base with this fingerprint."""
    return next(iter(sorted(folder.glob(f"*-{sha256[:12]}.ckpt"))), None)


def refuse_to_replace(path: Path) -> None:
    """Refuse a file that a new base must not replace.

    Refused are a folder, a file that :func:`write_base` has not written, and one in which a base
    stays for good.
    """
    if not path.exists():
        return
    sha256 = None
    with suppress(OSError, ValueError):  # no base at all
        file = read_base(path)
        if file.sha256 == fingerprint(file.tensors):
            sha256 = file.sha256
    if sha256 is None or path.stem.endswith(f"-{sha256[:12]}"):
        raise UserError(
            f"base_ckpt={path}: stage=pretrain would replace it, and it is not a current base; "
            "expected another file, or none, to replace the current base"
        )


def set_current_base(own: Path, current: Path) -> None:
    """Make the base in ``own``, where it stays for good, the one in ``current``.

    The base that is replaced also has a file of its own, and the log names the command to go back.
    """
    refuse_to_replace(current)
    before = read_base(current).sha256 if current.exists() else None
    if before is not None and not own.stem.endswith(before[:12]):
        previous = find_base(own.parent, before)
        if previous is None:  # it was made on another machine
            previous = versioned_base_path(own.parent, current.stem, before)
            with atomic_write(previous) as temporary:
                shutil.copyfile(current, temporary)
        paths = shlex.quote(str(previous)), shlex.quote(str(current))
        log.info("base: the one before is kept; go back with: cp %s %s", *paths)
    with atomic_write(current) as temporary:
        shutil.copyfile(own, temporary)
    log.info("base: %s, kept as %s", current, own)
