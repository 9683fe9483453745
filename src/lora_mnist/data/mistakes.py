"""A folder of pictures, in a subfolder for each right class, some of which a base gets wrong.

A picture is its prepared pixels here, since one that came in may have been saved anew. What was
learnt is known by its file (:func:`.images.digests_of`), which takes no decoding.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_mnist.data.folder import Folder
from lora_mnist.data.images import ImageDataset, Images, ImageSets, digests_of, sha256_of
from lora_mnist.errors import PictureError, UserError, nearest_to, printable
from lora_mnist.progress import progress

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A picture of a folder of mistakes. Equal ones in two files are one."""

    sha256: str  # of its pixels, in hexadecimal
    label: int
    path: Path
    image: Tensor


class Mistakes(NamedTuple):
    """Pictures that a base gets wrong."""

    train: Images  # to learn
    test: Images  # held out


def wrong_pictures(
    predict: Callable[[Iterable[tuple[Tensor, int]]], Tensor],
    dataset: ImageDataset,
    folder: Path,
    test_share: float,
) -> Mistakes:
    """The pictures in ``folder`` that a base gets wrong, by what ``predict`` says of each.

    One is held out by the SHA-256 of its pixels, unless it is a training image.
    """
    setting = f"mistakes={folder}"
    paths = sorted(folder.expanduser().glob("[!.]*/[!.]*"))
    by_content: dict[tuple[str, int], Picture] = {}
    for path in progress(paths, "mistakes", len(paths)):
        name = path.parent.name  # of the link, where it is one
        if name not in dataset.classes:
            raise UserError(
                f"{setting}: expected folders named after classes, such as {dataset.classes[0]}, "
                f"not {name}{nearest_to(name, dataset.classes)}"
            )
        try:
            image = dataset.read_picture(path)
        except PictureError as error:
            log.warning("%s: skipped: %s", printable(path), error)
            continue
        picture = Picture(_sha256(image), dataset.classes.index(name), path, image)
        by_content.setdefault((picture.sha256, picture.label), picture)
    if not by_content:
        raise UserError(f"{setting}: expected pictures, in a folder for each class; found none")
    pictures = [by_content[key] for key in sorted(by_content)]
    predicted = predict((picture.image, picture.label) for picture in pictures).tolist()
    wrong = [p for p, prediction in zip(pictures, predicted, strict=True) if prediction != p.label]
    if not wrong:
        raise UserError(
            f"{setting}: expected pictures that the base gets wrong; it has all {len(pictures)} "
            "right"
        )
    files, sets = {picture.sha256: picture.path for picture in wrong}, dataset.sets
    for part, images in (("validation", sets.val), ("test", sets.test)):
        for image_name, sha256 in zip(images.names, _sha256_of_each(images, dataset), strict=True):
            if sha256 in files:
                raise UserError(
                    f"{setting}: {files[sha256]} is {part} image {image_name}; expected "
                    "pictures from elsewhere, since these images judge what is learnt"
                )
    known = set(_sha256_of_each(sets.train, dataset))
    is_tested = torch.zeros(len(wrong), dtype=torch.bool)
    for number, picture in enumerate(wrong):
        is_below = int(picture.sha256[:8], 16) < test_share * 2**32
        is_tested[number] = is_below and picture.sha256 not in known
    labels = torch.tensor([picture.label for picture in wrong])
    paths, prepared = [p.path for p in wrong], [p.image for p in wrong]
    digests = digests_of(paths if isinstance(dataset, Folder) else prepared)
    # Files where the training images are files: both are then augmented before a transform.
    read = sets.train.read
    pixels = paths if read else prepared
    mistakes = Images(pixels, labels, read=read, digests=digests)
    train, test = mistakes.without(is_tested), mistakes.without(~is_tested)
    if not len(train):
        raise UserError(
            f"mistakes_test={test_share}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {len(pictures)} pictures wrong, and all of these are held out"
        )
    message = "%s: the base has %d of %d pictures right already, which are left out; of the others "
    message += "%d are to be learnt, and %d are held out"
    count = len(pictures)
    log.info(message, setting, count - len(wrong), count, len(train), len(test))
    return Mistakes(train, test)


def with_mistakes(images: ImageSets, mistakes: Mistakes) -> ImageSets:
    """The images of a run, with the mistakes to learn at the end of those to train on."""
    sha256 = dict(images.sha256)
    for name, pictures in (("mistakes", mistakes.train), ("mistakes_test", mistakes.test)):
        sha256[name] = sha256_of(*pictures.take(range(len(pictures))))
    return replace(images, train=images.train.followed_by(mistakes.train), sha256=sha256)


def _sha256(image: Tensor) -> str:
    """The SHA-256 of an image's pixels, in hexadecimal."""
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()


def _sha256_of_each(images: Images, dataset: ImageDataset) -> list[str]:
    """:func:`_sha256` of each of the images, which are read batch by batch."""
    loader = dataset.loader(images, batch_size=dataset.eval_batch_size)
    hashes = []
    for batch, _ in progress(loader, "comparing with the mistakes", len(loader)):
        hashes += [_sha256(image) for image in batch]
    return hashes
