"""The file beside an adapter with the digests of its training images."""

import logging
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_mnist.files import atomic_write
from lora_mnist.lora.base_state import fingerprint

log = logging.getLogger(__name__)

LEARNT_FILE = "learnt.safetensors"


def write_learnt(folder: Path, digests: Tensor) -> str:
    """Write the digests into an adapter's folder; return their fingerprint, for its record."""
    with atomic_write(folder / LEARNT_FILE) as path:
        save_file({"digests": digests}, path)
    return fingerprint_of(digests)


def read_learnt(folder: Path, sha256: str | None) -> Tensor | None:
    """Return the digests with this SHA-256, or None if the file is missing, as in PEFT."""
    if sha256 is None:
        return None
    with suppress(OSError, KeyError, SafetensorError):
        digests = load_file(folder / LEARNT_FILE)["digests"]
        if fingerprint_of(digests) == sha256:
            return digests
    message = "%s is missing, damaged or another adapter's: what this one has learnt is not known"
    log.warning(message, folder / LEARNT_FILE)
    return None


def fingerprint_of(digests: Tensor) -> str:
    """Return the SHA-256 of digests, in hexadecimal."""
    return fingerprint({"digests": digests})
