"""Bases of ours on disk: written, found by their SHA-256, and never lost.

Each base that is made here keeps a file of its own, ``<name>-<first 12 digits of the SHA-256 of its
tensors>.ckpt``, which is never replaced; ``<name>.ckpt``, the current one, is a copy of one.
"""

import hashlib
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_mnist.classifier.networks import DEFAULT
from lora_mnist.classifier.record import NO_RECORD, Record
from lora_mnist.classifier.weights_file import read_base
from lora_mnist.data import DATA_SETS, PUBLISHED, is_published
from lora_mnist.errors import UserError
from lora_mnist.files import atomic_write
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.project import expand_path

log = logging.getLogger(__name__)


def write_base(
    tensors: Mapping[str, Tensor],
    path: Path,
    record: Record = NO_RECORD,
    train_digests: Tensor | None = None,  # of its training images; None: not known
) -> None:
    """Write a base, whole or not at all; equal arguments give equal files."""
    # A clone does not take along other tensors that share the memory.
    plain = {"memory_format": torch.contiguous_format}
    state = {name: each.detach().cpu().clone(**plain) for name, each in tensors.items()}
    content: dict[str, Any] = {"state_dict": state, "record": record.content()}
    content |= {"sha256": hash_tensors(state), "train_digests": train_digests}
    buffer = BytesIO()  # torch.save would write a file's name into it
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def base_name(data: Mapping[str, Any], net: Mapping[str, Any]) -> str:
    """Return the name of a base's files, one for each network and data set: ``mnist_cnn``."""
    name = data.get("name")
    if name is None and is_published(data):
        data_set = DATA_SETS[data.get("_target_") or PUBLISHED[0]]
        default = signature(data_set).parameters["dataset"].default
        name = str(data.get("dataset") or default).lower()
    elif name is None:
        path = expand_path(data.get("data_dir") or "folder").resolve()
        # Two folders may have the same name.
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    target = net.get("_target_")
    if target in (None, DEFAULT):
        return str(name)
    known = ("lora_mnist.", "torchvision.models.")
    kind = target.rpartition(".")[2] if target.startswith(known) else target
    kind = str(net.get("model_name") or kind)
    return f"{name}_{re.sub('[^a-z0-9.]+', '_', kind.lower())}"


def permanent_base_path(folder: Path, name: str, sha256: str) -> Path:
    """Return the path under which a base is kept for good."""
    return folder / f"{name}-{sha256[:12]}.ckpt"


def find_base_by_sha256(folder: Path, sha256: str) -> Path | None:
    """Return the undamaged file of the base with this SHA-256 in ``folder``, or None."""
    for path in sorted(folder.glob(f"*-{sha256[:12]}.ckpt")):
        if read_base_sha256(path) == sha256:
            return path
    return None


def read_base_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a base of ours, or None if the file is damaged or not ours."""
    with suppress(OSError, ValueError):
        file = read_base(path)
        if file.sha256 == hash_tensors(file.tensors):
            return file.sha256
    return None


def check_replaceable(path: Path) -> str | None:
    """Raise if a file must not be replaced: it is not a base of ours, or a base's permanent file.

    Return the SHA-256 of the base in it, or None if there is no file.
    """
    if not path.exists():
        return None
    sha256 = read_base_sha256(path)
    if sha256 is None or path.stem.endswith(f"-{sha256[:12]}"):
        raise UserError(
            f"base_ckpt={path}: stage=pretrain would replace it, and it is not a current base; "
            "expected another file; without base_ckpt the current base is replaced"
        )
    return sha256


def set_current_base(own: Path, current: Path) -> None:
    """Copy the base in ``own``, its permanent file, to ``current``."""
    before = check_replaceable(current)
    if before is not None and not own.stem.endswith(before[:12]):
        previous = find_base_by_sha256(own.parent, before)
        if previous is None:  # it was made on another machine, or its own file is damaged
            previous = permanent_base_path(own.parent, current.stem, before)
            with atomic_write(previous) as temporary:
                shutil.copyfile(current, temporary)
        paths = shlex.quote(str(previous)), shlex.quote(str(current))
        log.info("base: the previous one is kept; restore it with: cp %s %s", *paths)
    with atomic_write(current) as temporary:
        shutil.copyfile(own, temporary)
    log.info("base: %s, kept as %s", current, own)
