"""What is known by which hash, all of them SHA-256.

- an image: ``Images.digests``, 8 bytes of that of its file, or of its pixels where it has none; so
  copies are found, and what base and adapter have learnt
- images and labels of a part, or paths, labels and digests of a folder: ``ImageSets.sha256``
- a picture of a folder of mistakes: that of its pixels, which holds some out (:mod:`.mistakes`)
- an image file's place in the order that holds images out: that of its path (:mod:`.split`)
- a base, or the digests that an adapter has learnt: :func:`.lora.base_state.fingerprint`
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor


def digests_of(images: Sequence[Tensor | Path | bytes]) -> Tensor:
    """Eight bytes of the SHA-256 of each image's file or, in memory, of its pixels: int64, (N,)."""
    digests = []
    for image in images:
        content: Any = image.contiguous().numpy() if isinstance(image, Tensor) else image
        if isinstance(image, Path):
            content = image.read_bytes()
        digests.append(hashlib.sha256(content).digest()[:8])
    return torch.from_numpy(numpy.frombuffer(b"".join(digests), "<i8").astype(numpy.int64))


def sha256_of(images: Tensor, labels: Tensor) -> str:
    """The SHA-256 of images and labels (int64), in hexadecimal."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
