"""A folder of pictures, in a subfolder for each right class, some of which a base gets wrong.

Everywhere here a picture is its prepared pixels: its file's name and format do not matter.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_mnist.data.images import ImageDataset, Images, ImageSets, sha256_of
from lora_mnist.errors import UserError, nearest_to
from lora_mnist.progress import progress

log = logging.getLogger(__name__)


class Mistakes(NamedTuple):
    """Pictures that a base gets wrong."""

    learnt: Images
    tested: Images


def wrong_pictures(
    predict: Callable[[Iterable[tuple[Tensor, int]]], Tensor],
    dataset: ImageDataset,
    folder: Path,
    test_share: float,
) -> Mistakes:
    """The pictures in ``folder`` that a base gets wrong: to learn from, and held out.

    ``predict`` gives the class that the base predicts for each picture. The SHA-256 of its pixels
    alone decides whether one is held out: neither other pictures nor the network have a say.
    """
    setting = f"mistakes={folder}"
    paths = sorted(folder.expanduser().glob("[!.]*/[!.]*"))
    pictures: dict[tuple[str, int], Tensor] = {}
    for path in progress(paths, "mistakes", len(paths)):
        name = path.parent.name  # where it is listed, also of a link
        if name not in dataset.classes:
            raise UserError(
                f"{setting}: expected folders named after classes, such as {dataset.classes[0]}, "
                f"not {name}{nearest_to(name, dataset.classes)}"
            )
        try:
            image = dataset.read_picture(path)
        except ValueError as error:
            log.warning("%s: skipped: %s", path, error)
            continue
        pictures.setdefault((_sha256(image), dataset.classes.index(name)), image)
    if not pictures:
        raise UserError(f"{setting}: expected pictures, in a folder for each class; found none")
    keys = sorted(pictures)
    predicted = predict((pictures[key], key[1]) for key in keys).tolist()
    wrong = [key for key, prediction in zip(keys, predicted, strict=True) if prediction != key[1]]
    if not wrong:
        raise UserError(
            f"{setting}: expected pictures that the base gets wrong; it has all {len(keys)} right"
        )
    mistakes = Images([pictures[key] for key in wrong], torch.tensor([label for _, label in wrong]))
    is_tested = torch.tensor([int(sha256[:8], 16) < test_share * 2**32 for sha256, _ in wrong])
    learnt = mistakes.subset((~is_tested).nonzero()[:, 0])
    tested = mistakes.subset(is_tested.nonzero()[:, 0])
    if not len(learnt):
        raise UserError(
            f"mistakes_test={test_share}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {len(keys)} pictures wrong, and all of these are held out"
        )
    log.info(
        "%s: the base has %d of %d pictures right already, which are left out; of the others %d "
        "are to be learnt, and %d are held out",
        *(setting, len(keys) - len(wrong), len(keys), len(learnt), len(tested)),
    )
    return Mistakes(learnt, tested)


def move_to_training(
    images: ImageSets, mistakes: Mistakes, dataset: ImageDataset
) -> tuple[ImageSets, Mistakes]:
    """The images of a training that learns mistakes, which stand at the end of those to train on.

    What is learnt is left out of the validation and test images, and what may be replayed out of
    the held-out mistakes.
    """
    learnt, tested = mistakes
    if len(tested):
        trained = set(_sha256_of_each(images.train, dataset))
        tested, copies = _without(trained, tested, _sha256_of_each(tested, dataset))
        if copies:
            log.warning("%d held-out mistakes are training images, and left out", copies)
    to_learn = set(_sha256_of_each(learnt, dataset))
    unseen = set(_sha256_of_each(tested, dataset))
    parts = {}
    for part, some in (("val", images.val), ("test", images.test)):
        hashes = _sha256_of_each(some, dataset)
        parts[part], copies = _without(to_learn, some, hashes)
        if copies:
            log.warning(
                "%d %s images are mistakes to learn, and left out: the base looks better on the "
                "others than it is; expected mistakes from elsewhere (docs/your_classifier.md)",
                *(copies, part),
            )
        if known := unseen & set(hashes):
            log.warning("%d held-out mistakes are also %s images", len(known), part)
    sha256 = dict(images.sha256)
    for name, pictures in (("mistakes", learnt), ("mistakes_test", tested)):
        sha256[name] = sha256_of(*pictures.take(range(len(pictures))))
    train = images.train.followed_by(learnt)
    changed = replace(images, train=train, val=parts["val"], test=parts["test"], sha256=sha256)
    return changed, Mistakes(learnt, tested)


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


def _without(known: set[str], images: Images, hashes: list[str]) -> tuple[Images, int]:
    """Those of ``images`` whose hash is not among ``known`` ones, and how many others there are."""
    is_new = torch.tensor([each not in known for each in hashes])
    chosen = is_new.nonzero()[:, 0]
    return images.subset(chosen), len(images) - len(chosen)
