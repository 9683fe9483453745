"""The networks that are pretrained and then repaired: two of ours, or anybody's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from lora_mnist.data.make import user_code_importable
from lora_mnist.errors import UserError, config_group


class MLP(nn.Sequential):
    """Fully connected classifier with ReLU between its layers, ``linear1`` to ``linearN``.

    Images, (N, ...) with ``in_features`` values each, give logits, (N, num_classes). With the
    default sizes it is the notebook's ``RichBoyNet``: 784-1000-2000-10, 2,807,010 parameters, far
    larger than the task needs so that LoRA has something to be small beside.

    Args:
        in_features: number of input values per image, all dimensions but the first.
        hidden_sizes: width of each hidden layer.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_features: int = 28 * 28,
        hidden_sizes: Sequence[int] = (1000, 2000),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        sizes = [in_features, *hidden_sizes, num_classes]
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            if number > 1:
                self.add_module(f"relu{number - 1}", nn.ReLU())
            self.add_module(f"linear{number}", nn.Linear(fan_in, fan_out))


class CNN(nn.Sequential):
    """Convolutional classifier: ``conv1`` to ``convN`` with ReLU and pooling, then ``linear1``.

    Images, (N, in_channels, image_size, image_size), give logits, (N, num_classes). Each
    convolution is 3x3 with padding, each max-pooling 2x2. With the default sizes it has 20,490
    parameters, and is the better classifier; it shows that nothing here is tied to the MLP.

    Args:
        in_channels: channels of the images.
        channels: output channels of each convolution.
        image_size: height and width of the images, at least ``2 ** len(channels)``.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        image_size: int = 28,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        for number, (fan_in, fan_out) in enumerate(pairwise([in_channels, *channels]), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(fan_in, fan_out, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2))
        side = image_size >> len(channels)  # pooling rounds down
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(channels[-1] * side * side, num_classes)


def make_net(cfg: DictConfig) -> nn.Module:
    """The network of ``cfg.net``, with fresh weights."""
    with user_code_importable(cfg), config_group("net"):
        net: Any = instantiate(cfg.net, _convert_="all")
    if not isinstance(net, nn.Module):
        raise UserError(f"net._target_={cfg.net._target_}: gives a {type(net).__name__}")
    return net


@contextmanager
def eval_on_device(net: nn.Module, device: torch.device) -> Iterator[torch.device]:
    """Inside the ``with`` block ``net`` is on ``device`` and in eval mode.

    Afterwards it is on the CPU, still in eval mode: a new adapter draws its first values there, the
    same on every machine.
    """
    net.eval().to(device)
    try:
        yield device
    finally:
        net.to("cpu")
