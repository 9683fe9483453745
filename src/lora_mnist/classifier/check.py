"""Checks a network before it is used: it has to take the images and to return logits."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.errors import UserError, report_group_errors


@torch.no_grad()
def check_outputs(net: nn.Module, images: Tensor, num_classes: int, dataset: str) -> None:
    """Raise if a network cannot take these images, or does not return a logit for each class."""
    shape = tuple(images.shape)
    with report_group_errors(
        f"net: images of shape {shape} from {dataset}; expected another net, such as net=resnet20, "
        "other sizes of its own, or other prepare.image_size or prepare.channels"
    ):
        output: Any = net(images)
    expected = (len(images), num_classes)
    given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if given != expected:
        raise UserError(
            f"net: gives {given} for images of shape {shape}; expected {expected}, since "
            f"{dataset} has {num_classes} classes"
        )
    if not output.isfinite().all():
        raise UserError("net: gives NaN or infinity; expected finite logits")
    # Rounding is far smaller, in half precision too.
    most = 0.02 * max(output.std().item(), 1e-6)
    alone = torch.cat([net(image[None]) for image in images])
    if alone.shape != output.shape or (alone - output).abs().max() > most:
        raise UserError(
            "net: an image's output depends on the rest of its batch; expected the same each time"
        )
    sums = output.sum(dim=1)
    if output.min() >= 0 and output.max() <= 1 and (sums - 1).abs().max() < 1e-3:
        raise UserError("net: its outputs sum to 1, as after a softmax; expected logits")


@torch.no_grad()
def use_channels_last(net: nn.Module, images: Tensor) -> None:
    """Change a convolutional network to the memory format channels_last, which is the fastest."""
    if sum(isinstance(module, nn.Conv2d) for module in net.modules()) < 2:
        return  # a vision transformer has one, and gains nothing
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        net(images)
    except RuntimeError:  # it calls view on an image
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
