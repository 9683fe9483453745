"""A folder of pictures, in a subfolder for each right class, some of which a base gets wrong."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_mnist.data.dataset import ImageDataset, ImageSets
from lora_mnist.data.images import Images, sha256_of
from lora_mnist.errors import UserError
from lora_mnist.progress import progress

log = logging.getLogger(__name__)


class Mistakes(NamedTuple):
    """Pictures that a base gets wrong."""

    learnt: Images
    held_out: Images


def wrong_pictures(
    predict: Callable[[Iterable[tuple[Tensor, int]]], Tensor],
    dataset: ImageDataset,
    folder: Path,
    test_share: float,
) -> Mistakes:
    """The pictures in ``folder`` that a base gets wrong: to learn from, and held out.

    ``predict`` gives the class that the base predicts for each picture. They lie in a folder for
    each class. Each is held out, or not, by its own SHA-256, so that of many the share
    ``test_share`` is: neither its name matters, nor other pictures, nor the network. A picture that
    is there twice counts once. The log names those that cannot be read.

    Raises:
        UserError: if no picture is left to learn from.
    """
    setting = f"mistakes={folder}"
    paths = sorted(folder.expanduser().glob("[!.]*/[!.]*"))
    pictures: dict[tuple[str, int], Tensor] = {}
    for path in progress(paths, "mistakes", len(paths)):
        name = path.parent.name  # where it is listed, also of a link
        if name not in dataset.classes:
            raise UserError(
                f"{setting}: expected folders named after classes, such as {dataset.classes[0]}, "
                f"not {name}"
            )
        try:
            image = dataset.read_picture(path)
        except ValueError as error:
            log.warning("%s: skipped: %s", path, error)
            continue
        label = dataset.classes.index(name)
        pictures.setdefault((hashlib.sha256(path.read_bytes()).hexdigest(), label), image)
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
    is_held_out = torch.tensor([int(sha[:8], 16) < test_share * 2**32 for sha, _ in wrong])
    learnt = mistakes.subset((~is_held_out).nonzero()[:, 0])
    held_out = mistakes.subset(is_held_out.nonzero()[:, 0])
    if not len(learnt):
        raise UserError(
            f"mistakes_test={test_share}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {len(keys)} pictures wrong, and all of these are held out"
        )
    log.info(
        "%s: the base has %d of %d pictures right already, which are left out; of the others %d "
        "are to be learnt, and %d are held out",
        *(setting, len(keys) - len(wrong), len(keys), len(learnt), len(held_out)),
    )
    return Mistakes(learnt, held_out)


def move_to_training(images: ImageSets, mistakes: Mistakes) -> ImageSets:
    """The images of a training that learns mistakes: they stand at the end of those to train on.

    The same pictures are left out of validation and test.
    """
    learnt, held_out = mistakes
    sha256 = dict(images.sha256)
    for split, pictures in (("mistakes", learnt), ("mistakes_test", held_out)):
        sha256[split] = sha256_of(*pictures.take(range(len(pictures))))
    return replace(
        images,
        train=images.train.followed_by(learnt),
        val=_without(images.val, learnt, "validation"),
        test=_without(images.test, learnt, "test"),
        sha256=sha256,
    )


def _without(images: Images, mistakes: Images, purpose: str) -> Images:
    """``images``, for ``purpose``, without those that are pixel by pixel among the ``mistakes``."""
    learnt = {pixels.numpy().tobytes() for pixels in mistakes.take(range(len(mistakes)))[0]}
    others = []
    for i in range(len(images)):
        if images.take([i])[0].numpy().tobytes() not in learnt:
            others.append(i)
    if len(others) == len(images):
        return images
    log.warning(
        "%d %s images are among the mistakes to learn, and left out of the %s: the base looks "
        "better on the others than it is; expected mistakes from elsewhere "
        "(docs/your_classifier.md)",
        *(len(images) - len(others), purpose, purpose),
    )
    return images.subset(torch.tensor(others, dtype=torch.int64))
