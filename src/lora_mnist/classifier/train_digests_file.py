"""The file beside an adapter with the digests of its training images."""

import logging
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_mnist.files import atomic_write
from lora_mnist.lora.base_state import hash_tensors

log = logging.getLogger(__name__)

TRAIN_DIGESTS_FILE = "train_digests.safetensors"


def write_train_digests(folder: Path, digests: Tensor) -> str:
    """Write the digests into an adapter's folder; return their SHA-256, for its record."""
    with atomic_write(folder / TRAIN_DIGESTS_FILE) as path:
        save_file({"digests": digests}, path)
    return hash_digests(digests)


def read_train_digests(folder: Path, sha256: str | None) -> Tensor | None:
    """Return the digests with this SHA-256, or None if the file is missing, as in PEFT."""
    if sha256 is None:
        return None
    with suppress(OSError, KeyError, SafetensorError):
        digests = load_file(folder / TRAIN_DIGESTS_FILE)["digests"]
        if hash_digests(digests) == sha256:
            return digests
    message = "%s is missing, damaged or another adapter's: its training images are not known"
    log.warning(message, folder / TRAIN_DIGESTS_FILE)
    return None


def hash_digests(digests: Tensor) -> str:
    """Return the SHA-256 of digests, in hexadecimal."""
    return hash_tensors({"digests": digests})
