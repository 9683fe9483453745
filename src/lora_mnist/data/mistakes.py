"""A folder of pictures, in a subfolder for each right class, some of which a base gets wrong."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_mnist.data.dataset import ImageDataset, ImageSets
from lora_mnist.data.images import Both, Images, ImageTensors, Subset
from lora_mnist.errors import UserError
from lora_mnist.progress import progress

log = logging.getLogger(__name__)


class Mistakes(NamedTuple):
    """Pictures that a base gets wrong."""

    learnt: ImageTensors
    held_out: ImageTensors


@torch.no_grad()
def wrong_pictures(
    net: nn.Module, dataset: ImageDataset, folder: Path, test_share: float, device: torch.device
) -> Mistakes:
    """The pictures in ``folder`` that ``net`` gets wrong: to learn from, and held out.

    ``net`` is the base, in eval mode on ``device``. The pictures lie in a folder for each class.
    Each is held out, or not, by its own SHA-256, so that of many the share ``test_share`` is:
    neither its name matters, nor other pictures, nor the network. A picture that is there twice
    counts once. The log names those that cannot be read.

    Raises:
        UserError: if no picture is left to learn from.
    """
    setting = f"data.mistakes={folder}"
    paths = sorted(folder.expanduser().glob("[!.]*/[!.]*"))
    wrong: dict[tuple[str, int], Tensor] = {}
    seen = set()
    for path in progress(paths, "data.mistakes, picture", len(paths)):
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
        key = hashlib.sha256(path.read_bytes()).hexdigest(), label
        if key not in seen:
            seen.add(key)
            logits = net(dataset.normalise(image[None].to(device)))
            if logits.argmax().item() != label:
                wrong[key] = image
    if not seen:
        raise UserError(f"{setting}: expected pictures, in a folder for each class; found none")
    if not wrong:
        raise UserError(
            f"{setting}: expected pictures that the base gets wrong; it has all {len(seen)} right"
        )
    order = sorted(wrong)
    images = torch.stack([wrong[key] for key in order])
    labels = torch.tensor([label for _, label in order])
    is_held_out = torch.tensor([int(sha[:8], 16) < test_share * 2**32 for sha, _ in order])
    learnt = ImageTensors(images[~is_held_out], labels[~is_held_out])
    held_out = ImageTensors(images[is_held_out], labels[is_held_out])
    if not len(learnt):
        raise UserError(
            f"data.mistakes_test={test_share}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {len(seen)} pictures wrong, and all of these are held out"
        )
    log.info(
        "%s: the base has %d of %d pictures right already, which are left out; of the others %d "
        "are to be learnt, and %d are held out",
        *(setting, len(seen) - len(wrong), len(seen), len(learnt), len(held_out)),
    )
    return Mistakes(learnt, held_out)


def with_mistakes(images: ImageSets, mistakes: Mistakes) -> ImageSets:
    """The images of a training that learns mistakes: they stand at the end of those to train on.

    The same pictures are left out of validation and test.
    """
    learnt, held_out = mistakes
    sha256 = {"mistakes": learnt.sha256(), "mistakes_test": held_out.sha256()}
    return replace(
        images,
        train=Both(images.train, learnt),
        val=without_mistakes(images.val, learnt, "validation"),
        test=without_mistakes(images.test, learnt, "test"),
        sha256={**images.sha256, **sha256},
    )


def by_split(mistakes: Mistakes | None) -> dict[str, ImageTensors]:
    """The mistakes by their names in results.json; empty sets are left out."""
    if mistakes is None:
        return {}
    splits = {"mistakes": mistakes.learnt, "mistakes_test": mistakes.held_out}
    return {split: images for split, images in splits.items() if len(images)}


def without_mistakes(images: Images, mistakes: ImageTensors, purpose: str) -> Images:
    """``images``, for ``purpose``, without those that are pixel by pixel among the ``mistakes``."""
    learnt = {image.numpy().tobytes() for image in mistakes.images}
    others = []
    for indices in torch.split(torch.arange(len(images)), 250):
        for i, image in zip(indices, images.take(indices.tolist())[0], strict=True):
            if image.numpy().tobytes() not in learnt:
                others.append(int(i))
    if len(others) == len(images):
        return images
    log.warning(
        "%d %s images are among the mistakes to learn, and left out of the %s: the base looks "
        "better on the others than it is; expected mistakes from elsewhere "
        "(docs/your_classifier.md)",
        *(len(images) - len(others), purpose, purpose),
    )
    return Subset(images, torch.tensor(others, dtype=torch.int64))
