"""Hashes, all of them SHA-256.

- an image: ``Images.digests``, the first 8 bytes of its file's hash, or of its pixels' where it has
  no file; duplicates are found by it, and the images that base and adapter were trained on
- images and labels of a split, or paths, labels and digests of a folder: ``ImageSets.sha256``
- a picture in a folder of mistakes: the hash of its pixels, which decides if it is held out
  (:mod:`.mistakes`)
- an image file's place in the order that holds images out: the hash of its path (:mod:`.split`)
- a base, or the digests of an adapter's training images: :func:`.lora.base_state.hash_tensors`
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor


def compute_digests(images: Sequence[Tensor | Path | bytes]) -> Tensor:
    """Hash each image's file or, in memory, its pixels: 8 bytes of the SHA-256, int64, (N,)."""
    digests = []
    for image in images:
        content: Any = image.contiguous().numpy() if isinstance(image, Tensor) else image
        if isinstance(image, Path):
            content = image.read_bytes()
        digests.append(hashlib.sha256(content).digest()[:8])
    return torch.from_numpy(numpy.frombuffer(b"".join(digests), "<i8").astype(numpy.int64))


def hash_images(images: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of images and labels (int64), in hexadecimal."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
