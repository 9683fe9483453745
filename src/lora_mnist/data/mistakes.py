"""Reads a folder of pictures, with a subfolder for each right class, that a base may get wrong.

Pictures are compared by their prepared pixels, since an incoming one may have been saved again.
Images that were trained on are known by their files' digests (:func:`.compute_digests`).
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_mnist.data.dataset import ImageDataset
from lora_mnist.data.digests import compute_digests, hash_images
from lora_mnist.data.images import Images, ImageSets
from lora_mnist.data.listing import files_below, subfolders
from lora_mnist.errors import PictureError, UserError, printable, report_as, suggest_nearest
from lora_mnist.progress import progress

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture in a folder of mistakes; equal pictures count once."""

    sha256: str  # of its pixels, in hexadecimal
    label: int
    path: Path
    image: Tensor


class Mistakes(NamedTuple):
    """Pictures that a base gets wrong."""

    train: Images  # to learn
    test: Images  # held out


def find_mistakes(
    predict: Callable[[Iterable[tuple[Tensor, int]]], Tensor],
    dataset: ImageDataset,
    folder: Path,
    test_share: float,
) -> Mistakes:
    """Return the pictures in ``folder`` that a base gets wrong; ``predict`` classifies each."""
    pictures = _read(folder, dataset)
    count = len(pictures)
    predicted = predict((picture.image, picture.label) for picture in pictures).tolist()
    wrong = [p for p, prediction in zip(pictures, predicted, strict=True) if prediction != p.label]
    if not wrong:
        expected = f"expected pictures that the base gets wrong; it has all {count} right"
        raise UserError(f"mistakes={folder}: {expected}")
    _refuse_test_images(wrong, dataset, folder)
    # Files if the training images are files: both are augmented before a transform.
    reader, labels = dataset.sets.train.reader, torch.tensor([each.label for each in wrong])
    sources = [each.path if reader else each.image for each in wrong]
    mistakes = Images(sources, labels, reader=reader)
    is_held_out = _hold_out(wrong, dataset, test_share)
    train, test = mistakes.without(is_held_out), mistakes.without(~is_held_out)
    if not len(train):
        raise UserError(
            f"mistakes_test={test_share}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {count} pictures wrong, and all of these are held out"
        )
    message = "mistakes=%s: the base has %d of %d pictures right already, which are excluded; of "
    message += "the others %d are trained on, and %d are held out"
    log.info(message, folder, count - len(wrong), count, len(train), len(test))
    return Mistakes(train, test)


def _read(folder: Path, dataset: ImageDataset) -> list[Picture]:
    """Return the readable pictures in ``folder``, by their SHA-256."""
    root, expected = folder.expanduser(), "expected pictures, in a folder for each right class"
    if not root.is_dir():
        raise UserError(f"mistakes={folder}: no such folder; {expected}")
    with report_as(f"mistakes={folder}"):
        paths = [path for name in subfolders(root) for path in files_below(root / name)]
    pictures: dict[str, Picture] = {}
    for path in progress(paths, "mistakes", len(paths)):
        name = path.relative_to(root).parts[0]  # a link counts in the folder of the link
        if name not in dataset.classes:
            raise UserError(
                f"mistakes={folder}: expected folders named after classes, such as "
                f"{dataset.classes[0]}, not {name}{suggest_nearest(name, dataset.classes)}"
            )
        try:
            image = dataset.read_picture(path)
        except PictureError as error:
            log.warning("%s: skipped: %s", printable(path), error)
            continue
        sha256 = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        picture = Picture(sha256, dataset.classes.index(name), path, image)
        known = pictures.setdefault(sha256, picture)
        if known.label != picture.label:
            both = f"{known.path} and {path} are one picture"
            raise UserError(f"mistakes={folder}: {both}; expected it in one class")
    if not pictures:
        raise UserError(f"mistakes={folder}: {expected}; found none")
    return [pictures[key] for key in sorted(pictures)]


def _refuse_test_images(pictures: Iterable[Picture], dataset: ImageDataset, folder: Path) -> None:
    """Raise if a picture is a validation or test image."""
    sets, digests = dataset.sets, compute_digests([picture.image for picture in pictures]).tolist()
    files = {digest: picture.path for digest, picture in zip(digests, pictures, strict=True)}
    for split, images in (("validation", sets.val), ("test", sets.test)):
        for name, digest in zip(images.names, _hash_pixels(images, dataset), strict=True):
            if digest in files:
                raise UserError(
                    f"mistakes={folder}: {files[digest]} is {split} image {name}; expected "
                    "pictures from elsewhere, since these images test the repair"
                )


def _hold_out(pictures: Sequence[Picture], dataset: ImageDataset, share: float) -> Tensor:
    """Return which pictures to hold out, by SHA-256, bool of shape (N,); never training images."""
    known = torch.tensor(_hash_pixels(dataset.sets.train, dataset), dtype=torch.int64)
    is_known = torch.isin(compute_digests([picture.image for picture in pictures]), known)
    is_below = [int(picture.sha256[:8], 16) < share * 2**32 for picture in pictures]
    return torch.tensor(is_below) & ~is_known


def append_mistakes(images: ImageSets, mistakes: Mistakes) -> ImageSets:
    """Return the images of a run with the mistakes to learn after the training images."""
    sha256 = dict(images.sha256)
    for name, pictures in (("mistakes", mistakes.train), ("mistakes_test", mistakes.test)):
        sha256[name] = hash_images(*pictures.take(range(len(pictures))))
    return replace(images, train=images.train.followed_by(mistakes.train), sha256=sha256)


def _hash_pixels(images: Images, dataset: ImageDataset) -> list[int]:
    """Return the digests of images' pixels, batch by batch, and not of their files."""
    loader = dataset.loader(images, batch_size=dataset.eval_batch_size)
    digests = []
    for batch, _ in progress(loader, "comparing with the mistakes", len(loader)):
        digests += compute_digests(batch).tolist()
    return digests
