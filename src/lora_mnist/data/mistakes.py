"""A folder of pictures, in a subfolder for each right class, some of which a base gets wrong."""

import hashlib
import logging
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.images import ImageTensors
from lora_mnist.errors import UserError
from lora_mnist.progress import progress

_info = rank_zero_only(logging.getLogger(__name__).info)
_warn = rank_zero_only(logging.getLogger(__name__).warning)


@torch.no_grad()
def wrong_pictures(
    net: nn.Module, data: ImageDataModule, device: torch.device
) -> tuple[ImageTensors, ImageTensors]:
    """The pictures in ``data.mistakes`` that ``net`` gets wrong: to learn from, and held out.

    ``net`` is the base, in eval mode on ``device``. The pictures lie in a folder for each class.
    Each is held out, or not, by its own SHA-256, so that of many the share ``data.mistakes_test``
    is: neither its name matters, nor other pictures, nor the network. A picture that is there twice
    counts once. The log names those that cannot be read.

    Raises:
        UserError: if no picture is left to learn from.
    """
    setting = f"data.mistakes={data.mistakes}"
    paths = sorted(Path(str(data.mistakes)).glob("[!.]*/[!.]*"))
    wrong: dict[tuple[str, int], Tensor] = {}
    seen = set()
    for path in progress(paths, "data.mistakes, picture", len(paths)):
        name = path.parent.name  # where it is listed, also of a link
        if name not in data.classes:
            raise UserError(
                f"{setting}: expected folders named after classes, such as {data.classes[0]}, "
                f"not {name}"
            )
        try:
            image = data.read_picture(path)
        except ValueError as error:
            _warn("%s: skipped: %s", path, error)
            continue
        label = data.classes.index(name)
        key = hashlib.sha256(path.read_bytes()).hexdigest(), label
        if key not in seen:
            seen.add(key)
            logits = net(data.normalise(image[None].to(device)))
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
    is_held_out = torch.tensor([int(sha[:8], 16) < data.mistakes_test * 2**32 for sha, _ in order])
    learnt = ImageTensors(images[~is_held_out], labels[~is_held_out])
    held_out = ImageTensors(images[is_held_out], labels[is_held_out])
    if not len(learnt):
        raise UserError(
            f"data.mistakes_test={data.mistakes_test}: expected a smaller share, since the base "
            f"gets {len(wrong)} of {len(seen)} pictures wrong, and all of these are held out"
        )
    _info(
        "%s: the base has %d of %d pictures right already, which are left out; of the others %d "
        "are learnt and %d held out",
        *(setting, len(seen) - len(wrong), len(seen), len(learnt), len(held_out)),
    )
    return learnt, held_out
