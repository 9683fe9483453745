"""What a network answered to each test image, kept beside results.json: read, never asked again.

``answers.safetensors`` holds a tensor for each field of :class:`Answers`, and the images of its
galleries, so that a run can be drawn from its folder alone, wherever the data is. It takes about
0.1 MB for 10,000 images of 28 x 28.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lora_mnist.disk.files import atomic_write

ANSWERS_FILE = "answers.safetensors"

#: Images in a gallery, and the longest side with which one is kept.
_SHOWN = 32
_LONGEST = 64
#: What a million test images and their galleries would not fill.
_MOST_BYTES = 64 << 20

Array = NDArray[Any]


@dataclass(frozen=True)
class Gallery:
    """Some images of one kind.

    Attributes:
        index: their places among the test images, shape (K,).
        images: uint8, shape (K, channels, height, width).
        total: how many there are of the kind.
    """

    index: Array
    images: Array
    total: int


@dataclass(frozen=True)
class Answers:
    """The answers to N test images.

    Attributes:
        label: what the images show, shape (N,).
        base: what the base answered, shape (N,).
        base_probability: how sure it was, shape (N,).
        adapted: what the adapted network answered; ``None`` where there is only a base.
        adapted_probability: how sure it was.
        galleries: by kind, ``repaired`` and ``broken`` or, of a base, ``wrong``: the images that
            the network is surest about, the classes taking turns.
    """

    label: Array
    base: Array
    base_probability: Array
    adapted: Array | None = None
    adapted_probability: Array | None = None
    galleries: dict[str, Gallery] = field(default_factory=dict)

    def confusion(self, side: str, classes: int) -> Array:
        """How many images of class ``y`` were answered with ``c``, shape (classes, classes).

        ``side`` is ``base`` or ``adapted``.
        """
        answer = getattr(self, side)
        if max(self.label.max(initial=0), answer.max(initial=0)) >= classes:
            raise ValueError(f"{ANSWERS_FILE}: answers beyond the {classes} classes")
        cells = self.label.astype(np.int64) * classes + answer
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def kinds(self) -> dict[str, Array]:
        """Which images were repaired and which broken, or which are wrong: masks, shape (N,)."""
        before = self.base == self.label
        if self.adapted is None:
            return {"wrong": ~before}
        after = self.adapted == self.label
        return {"repaired": after & ~before, "broken": before & ~after}


def write_answers(told: Mapping[str, Any], images: Any, folder: Path) -> None:
    """Write the file into a run's folder, whole or not at all.

    Args:
        told: tensors by the names of the fields of :class:`Answers`, without galleries, and
            ``index``: each image's place in ``images``.
        images: the test images, a uint8 tensor of shape (N, channels, height, width).
        folder: the run's folder.

    Raises:
        OSError: if it cannot be written.
    """
    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in told.items()}
    place = arrays.pop("index")
    answers = Answers(**arrays)
    sure = answers.base_probability if answers.adapted is None else answers.adapted_probability
    kept = {key: _small(array) for key, array in arrays.items()}
    for kind, mask in answers.kinds().items():
        chosen = _in_turns(np.flatnonzero(mask), answers.label, sure)[:_SHOWN]
        kept[f"{kind}.index"] = chosen.astype(np.int64)
        kept[f"{kind}.images"] = np.ascontiguousarray(_shrunk(images[place[chosen]].numpy()))
    with atomic_write(folder / ANSWERS_FILE) as path:
        path.write_bytes(save(kept))


def read_answers(folder: Path) -> Answers | None:
    """The answers in a run's folder; ``None`` where there are none.

    Raises:
        ValueError: if they cannot be used.
    """
    path = folder / ANSWERS_FILE
    if not path.exists():
        return None
    damaged = f"{ANSWERS_FILE}: damaged, or of another version"
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ValueError(damaged)
        kept = load_file(path)
        fields: dict[str, Any] = {key: array for key, array in kept.items() if "." not in key}
        answers = Answers(**fields)
        for kind, mask in answers.kinds().items():
            gallery = Gallery(kept[f"{kind}.index"], kept[f"{kind}.images"], int(mask.sum()))
            answers.galleries[kind] = gallery
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(damaged) from error
    return answers


def _small(array: Array) -> Array:
    """Probabilities to three digits, classes in a byte where that is enough."""
    if array.dtype.kind == "f":
        return array.astype(np.float16)
    return array.astype(np.uint8 if array.max(initial=0) < 256 else np.int32)


def _in_turns(index: Array, label: Array, sure: Any) -> Array:
    """``index``, the surest first, the classes taking turns."""
    order = index[np.argsort(-sure[index].astype(np.float64), kind="stable")]
    turn = np.zeros(len(order), dtype=np.int64)
    for c in np.unique(label[order]):
        of_class = label[order] == c
        turn[of_class] = np.arange(of_class.sum())
    return order[np.argsort(turn, kind="stable")]


def _shrunk(images: Array) -> Array:
    """Every n-th pixel of images that are too large to keep."""
    step = -(-max(images.shape[-2:]) // _LONGEST)
    return images[..., ::step, ::step]
